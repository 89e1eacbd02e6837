"""What to change when a run does not fit: each change goes through the parser and is estimated like the run itself."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ...extras.errors import UserError
from ...hparams.methods import tuning_methods
from ...hparams.optimizers import OPTIMIZERS
from ..stage import RunArguments
from .estimate import Estimate
from .figures import Suggestion


class Change(NamedTuple):
    """A proposal."""

    values: dict[str, Any]
    why: str


Try = Callable[[dict[str, Any]], Estimate]
"""Estimates the run with some keys changed; a combination that is refused is a UserError."""


def suggest(estimate: Estimate, attempt: Try, free: int) -> tuple[Suggestion, ...]:
    """Return changes that save memory, the gentlest first, and then together until the run fits."""
    found: list[Suggestion] = []
    together: dict[str, Any] = {}
    for change in changes(estimate.arguments):
        made = _attempt(change, estimate, attempt, free)
        if made is None:
            continue
        found.append(made)
        if made.fits:
            continue
        joined = {**together, **change.values}
        if together:
            both = _attempt(Change(joined, "these together"), estimate, attempt, free)
            if both is None:
                continue
            if both.fits:
                found.append(both)
                break
        together = joined
    return tuple(found)


def changes(arguments: RunArguments) -> Iterator[Change]:
    """Yield what may help this run."""
    yield from _recompute(arguments)
    yield from _smaller_batches(arguments)
    yield from _smaller_optimizer(arguments)
    yield from _smaller_method(arguments)
    if arguments.data.cutoff_len > SHORTEST:
        shorter = max(arguments.data.cutoff_len // 2, SHORTEST)
        yield Change({"cutoff_len": shorter}, "longer rows are cut, which loses their ends")


SHORTEST = 256


def _recompute(arguments: RunArguments) -> Iterator[Change]:
    model = arguments.model
    if model.disable_gradient_checkpointing is True or model.checkpointed_layers is not None:
        values = {"disable_gradient_checkpointing": False, "checkpointed_layers": None}
        yield Change(values, "activations are computed twice: about a third more time for a step")
    if model.disable_gradient_checkpointing is not True and not model.use_unsloth_gc:
        values = {"disable_gradient_checkpointing": False, "use_unsloth_gc": True}
        yield Change(values, "the inputs of layers wait in main memory (beside an accelerator)")


def _smaller_batches(arguments: RunArguments) -> Iterator[Change]:
    training, data = arguments.training, arguments.data
    if data.max_batch_tokens is not None and data.max_batch_tokens > 2 * data.cutoff_len:
        yield Change({"max_batch_tokens": data.max_batch_tokens // 2}, "smaller batches, more steps")
        return
    rows, steps = training.per_device_train_batch_size, training.gradient_accumulation_steps
    sizes = [rows // 2, 1] if rows > 3 else [1] if rows > 1 else []
    for size in sizes:
        values = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps * rows // size}
        yield Change(values, "the same update from smaller batches")


def _smaller_optimizer(arguments: RunArguments) -> Iterator[Change]:
    finetuning = arguments.finetuning
    if tuning_methods()[finetuning.finetuning_type].is_adapter:
        return
    if not any(getattr(finetuning, row.switch) for row in OPTIMIZERS.values()):
        if arguments.training.optim.startswith("adamw_torch"):
            yield Change({"optim": "adamw_8bit"}, "8-bit states (bitsandbytes)")
        yield Change({"use_galore": True, "galore_rank": 128}, "states of a low rank")
    if not finetuning.pure_bf16:
        yield Change({"pure_bf16": True}, "weights, gradients and states in bf16: coarser updates")


def _smaller_method(arguments: RunArguments) -> Iterator[Change]:
    finetuning = arguments.finetuning
    switches = {row.switch: row.switch == "none" for row in OPTIMIZERS.values() if getattr(finetuning, row.switch)}
    if not tuning_methods()[finetuning.finetuning_type].is_adapter:
        values = {"finetuning_type": "lora", "pure_bf16": False, **switches}
        yield Change(values, "an adapter is trained, the weights stay")
        yield Change({**values, "quantization_bit": 4}, "an adapter on weights of 4 bits (QLoRA)")
    elif arguments.model.quantization_bit is None and tuning_methods()[finetuning.finetuning_type].quantized:
        yield Change({"quantization_bit": 4}, "the frozen weights in 4 bits (QLoRA)")


def _attempt(change: Change, estimate: Estimate, attempt: Try, free: int) -> Suggestion | None:
    """Estimate a change; None for one that the rules refuse or that saves nothing."""
    try:
        changed = attempt(change.values)
    except UserError:
        return None
    saved = estimate.peak - changed.peak
    if saved <= 0:
        return None
    return Suggestion(changes=change.values, why=change.why, peak=changed.peak, saved=saved, fits=changed.fits(free))
