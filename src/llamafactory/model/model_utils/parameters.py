"""Number formats and counts of a model's parameters."""

import torch
from transformers import PreTrainedModel

from ...extras.logging import get_logger
from ..quantization import num_weights
from ..request import LoadRequest


logger = get_logger(__name__)

ADALORA_DIVISOR = "ranknum"
"""PEFT reads it back as float32, so it must be that before: a resumed run would divide by another number."""


def settle_dtypes(model: PreTrainedModel, request: LoadRequest) -> PreTrainedModel:
    """Bring trained weights to their format and frozen ones to theirs; parts the model keeps in float32 stay so."""
    kept = _kept_in_float32(model, request.dtypes.frozen)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(request.dtypes.trainable)
        elif parameter.is_floating_point() and not any(part in kept for part in name.split(".")):
            parameter.data = parameter.data.to(request.dtypes.frozen)
    return model


def _kept_in_float32(model: PreTrainedModel, dtype: torch.dtype) -> set[str]:
    """The parts that the model's authors want in float32: some below float16 only, some below any short format."""
    parts: set[str] = {ADALORA_DIVISOR} | set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        parts |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    return parts


def count_parameters(model: PreTrainedModel) -> tuple[int, int]:
    """Return how many parameters are trained, and how many there are; shared ones count once."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return trained, sum(num_weights(parameter) for parameter in model.parameters())


def report_parameters(model: PreTrainedModel, request: LoadRequest) -> PreTrainedModel:
    """Log how much of the model is trained."""
    trained, total = count_parameters(model)
    if request.is_trainable:
        share = 100 * trained / total
        logger.info("trainable params: %s || all params: %s || trainable%%: %.4f", f"{trained:,}", f"{total:,}", share)
    else:
        logger.info("all params: %s", f"{total:,}")
    if request.model_args.print_param_status:
        for name, parameter in model.named_parameters():
            logger.info("%s: %s, %s, trained: %s", name, parameter.dtype, parameter.device, parameter.requires_grad)
    return model
