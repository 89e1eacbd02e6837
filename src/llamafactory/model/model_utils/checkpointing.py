"""Gradient checkpointing: activations are computed again in the backward pass instead of being kept.

It costs about a third more time per step, so it is switched on where it was asked for, or where a step would otherwise
not fit into the memory that is free. `checkpointed_layers` does it for the first layers only: the backward pass
reaches them last, when the activations of the others are gone, so what is computed again needs no room of its own.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ...extras.device import device_facts
from ...extras.logging import get_logger
from ..depths import has_depths
from ..memory import StepShape, estimate_step
from ..request import LoadRequest
from .offloading import offload_inputs
from .wrapping import unwrapped


if TYPE_CHECKING:
    from ...hparams import ModelArguments

logger = get_logger(__name__)

USABLE = 0.9
"""The share of the free memory that a step may take: allocators lose some to fragments."""
GIB = 2**30
ALL_LAYERS = 2**31


def prepare_checkpointing(model: PreTrainedModel, request: LoadRequest) -> PreTrainedModel:
    """Switch checkpointing on for training where `disable_gradient_checkpointing: false` asks for it.

    With null, `checkpoint_if_needed` decides once the size of a batch is known.
    """
    is_asked = request.is_trainable and request.model_args.disable_gradient_checkpointing is False
    if is_asked and not request.is_by_unsloth:
        enable_checkpointing(model, request.model_args)
    return model


class Checkpointing(NamedTuple):
    """What was chosen, and why in a few words."""

    is_on: bool
    reason: str


def checkpoint_if_needed(
    model: PreTrainedModel, shape: StepShape, model_args: "ModelArguments", *, on_device: bool, free: int
) -> Checkpointing:
    """Switch checkpointing on where a step would not fit into `free` bytes otherwise.

    On a CPU the weights are in memory already; with `on_device` they still have to go to the accelerator.
    """
    estimate = estimate_step(model, shape)
    needed = estimate.total if on_device else estimate.beyond_weights
    reason = (
        f"{shape.tokens} tokens take about {needed / GIB:.1f} GiB {'with' if on_device else 'beside'} the weights; "
        f"{free / GIB:.1f} GiB are free"
    )
    if needed <= USABLE * free:
        return Checkpointing(False, reason)
    return Checkpointing(enable_checkpointing(model, model_args), reason)


def enable_checkpointing(model: PreTrainedModel, model_args: "ModelArguments") -> bool:
    """Switch checkpointing on; False for a model that cannot.

    transformers also makes the embedding's output need a gradient, without which the reentrant form would not reach
    adapters: nothing at the bottom of a frozen network needs one. What the routers of a mixture of depths learn from
    would not survive that form at all.
    """
    if not model.supports_gradient_checkpointing:
        logger.warning("This model cannot checkpoint its activations; all of them are kept.")
        return False
    settings: dict[str, Any] = {"use_reentrant": model_args.use_reentrant_gc and not has_depths(model)}
    model.activation_checkpointing_enable(settings)
    layers = decoder_layers(model)
    chosen = layers if model_args.checkpointed_layers is None else layers[: model_args.checkpointed_layers]
    for layer in layers[len(chosen) :]:
        layer.gradient_checkpointing = False
    if model_args.use_unsloth_gc:
        if device_facts().kind == "cpu":
            logger.info("use_unsloth_gc: on a CPU activations are in main memory anyway; nothing is moved.")
        else:
            offload_inputs(chosen)
    return True


def decoder_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """Return the layers that can be checkpointed one by one, the first of the model first."""
    return [module for module in unwrapped(model).modules() if isinstance(module, GradientCheckpointingLayer)]


def num_checkpointed(model_args: "ModelArguments") -> int:
    """Return how many layers are checkpointed where checkpointing is on."""
    return ALL_LAYERS if model_args.checkpointed_layers is None else model_args.checkpointed_layers
