"""What a model with packed weights needs before it can be trained on with an adapter."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ...extras.errors import UserError
from ...extras.heap import trim_heap
from ..dtype import DtypeChoice
from ..modules import is_linear
from .packed import PACKED_BY
from .sizes import are_whole_copied, num_weights


if TYPE_CHECKING:
    from ..request import LoadRequest


def settle_packing(model: PreTrainedModel, request: "LoadRequest") -> PreTrainedModel:
    """Keep the weights of a training model as they are, and let adapters learn on all of them."""
    if model.device.type == "cpu" and any(map(_is_packed_layer, model.modules())):
        _tidy_memory(model)
    if request.is_trainable:
        _keep_packed_once(model)
        _take_torchao_over(model)
        _require_gradients(model, request.dtypes)
    return model


def _tidy_memory(model: PreTrainedModel) -> None:
    """Give back what packing took: the pages of the file, and the holes in the heap where its own numbers were.

    The weights that stayed whole are parts of the mapped file, and while one is, all pages that were read count as
    this process's.
    """
    parameters = list(model.parameters())
    whole = [
        parameter for parameter in parameters if type(parameter) is nn.Parameter and parameter.is_floating_point()
    ]
    num_whole = sum(parameter.numel() for parameter in whole)
    if are_whole_copied(num_whole, sum(map(num_weights, parameters)) - num_whole):
        for parameter in whole:
            parameter.data = parameter.data.clone()
    trim_heap()


def _keep_packed_once(model: PreTrainedModel) -> None:
    """Some packages pack weights once more when they first answer without a gradient, for good.

    bitsandbytes 0.50 does on CPUs with AVX512-BF16 (matmul_4bit), gptqmodel 7.6 on every CPU. The product with what
    was packed again has no derivative: after one evaluation, the gradient would end at every layer without a word.
    """
    for module in model.modules():
        layer: Any = module
        if hasattr(module, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
        if hasattr(module, "linear_mode"):
            layer.linear_mode = "train"


def _take_torchao_over(model: PreTrainedModel) -> None:
    """The Trainer of transformers 5.23 refuses torchao's whole numbers, on which adapters learn all the same."""
    inner: Any = model
    config: Any = getattr(model.config, "quantization_config", None)
    if getattr(inner, "is_quantized", False) and getattr(config, "quant_method", "") == "torchao":
        inner.is_quantized = False
        vars(model)[PACKED_BY] = "torchao"


def _require_gradients(model: PreTrainedModel, dtypes: DtypeChoice) -> None:
    """Refuse layers that give no gradient, once they have answered without one: adapters below would learn nothing.

    They are asked as the run will ask: under its autocast, without which torchao's would meet another format.
    """
    kinds = {type(module): module for module in model.modules() if _is_packed_layer(module)}
    for kind, module in kinds.items():
        layer: Any = module
        device = next(iter(module.buffers()), next(iter(module.parameters()), torch.empty(0))).device
        x = torch.zeros(2, layer.in_features, dtype=dtypes.frozen, device=device)
        with torch.autocast(device.type, dtypes.frozen, enabled=dtypes.autocast is not None):
            with torch.no_grad():
                layer.eval()(x)
            has_gradient = layer.train()(x.requires_grad_()).requires_grad
        if not has_gradient:
            raise UserError(
                f"The quantized layers here ({kind.__name__}) give no gradient, so nothing could be trained on them; "
                "use quantization_bit on the 16-bit parent."
            )


def _is_packed_layer(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    is_whole = type(weight) is nn.Parameter and weight.is_floating_point()
    return is_linear(module) and not is_whole
