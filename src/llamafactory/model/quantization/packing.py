"""bitsandbytes packs weights once more, on CPUs with AVX512-BF16, when they first answer without a gradient."""

from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel


if TYPE_CHECKING:
    from ..request import LoadRequest


def settle_packing(model: PreTrainedModel, request: "LoadRequest") -> PreTrainedModel:
    """Keep the weights of a training model as they are.

    The product with weights that were packed again has no derivative (bitsandbytes 0.50, matmul_4bit), and nothing
    packs them back: after one evaluation, the gradient would end at every layer without a word.
    """
    if request.is_trainable:
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                layer: Any = module
                layer.support_avx512bf16_for_cpu = False
    return model
