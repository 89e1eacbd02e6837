"""Keeps the scales of weights that FSDP sends in 8 bits."""

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from ...model.quantization.float8_training import refresh_gathered_scales


if TYPE_CHECKING:
    from ...hparams import TrainingArguments


class GatheredScales(TrainerCallback):
    """Works out all scales in one exchange after each step of the optimizer."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Answer the Trainer's call."""
        refresh_gathered_scales(model)


def float8_callbacks(training: "TrainingArguments") -> list[TrainerCallback]:
    """Return the callback where shards travel in 8 bits."""
    return [GatheredScales()] if training.fp8 and training.fp8_enable_fsdp_float8_all_gather else []
