"""What a model with packed weights needs before it can be trained on with an adapter."""

from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from .packed import PACKED_BY


if TYPE_CHECKING:
    from ..request import LoadRequest


def settle_packing(model: PreTrainedModel, request: "LoadRequest") -> PreTrainedModel:
    """Keep the weights of a training model as they are, and let adapters learn on all of them."""
    if request.is_trainable:
        _keep_packed_once(model)
        _take_torchao_over(model)
    return model


def _keep_packed_once(model: PreTrainedModel) -> None:
    """bitsandbytes packs weights once more, on CPUs with AVX512-BF16, when they first answer without a gradient.

    The product with weights that were packed again has no derivative (bitsandbytes 0.50, matmul_4bit), and nothing
    packs them back: after one evaluation, the gradient would end at every layer without a word.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            layer: Any = module
            layer.support_avx512bf16_for_cpu = False


def _take_torchao_over(model: PreTrainedModel) -> None:
    """The Trainer of transformers 5.23 refuses torchao's whole numbers, on which adapters learn all the same."""
    inner: Any = model
    config: Any = getattr(model.config, "quantization_config", None)
    if getattr(inner, "is_quantized", False) and getattr(config, "quant_method", "") == "torchao":
        inner.is_quantized = False
        vars(model)[PACKED_BY] = "torchao"
