"""Gradient checkpointing: activations are computed again in the backward pass instead of being kept."""

from transformers import PreTrainedModel

from ...extras.logging import get_logger
from ..request import LoadRequest


logger = get_logger(__name__)


def prepare_checkpointing(model: PreTrainedModel, request: LoadRequest) -> PreTrainedModel:
    """Switch checkpointing on for training unless it was turned off.

    transformers also makes the embedding's output need a gradient, without which the reentrant form would not reach
    adapters: nothing at the bottom of a frozen network needs one.
    """
    if not request.is_trainable or request.model_args.disable_gradient_checkpointing:
        return model
    if not model.supports_gradient_checkpointing:
        logger.warning("This model cannot checkpoint its activations; all of them are kept.")
        return model

    model.activation_checkpointing_enable({"use_reentrant": request.model_args.use_reentrant_gc})
    logger.info("Gradient checkpointing is on: less memory, about a third more time per step.")
    return model
