"""What a schedule of learning rates needs to know besides its name, once the length of a run is known."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import Seq2SeqTrainingArguments


PLATEAU = 3
"""With `warmup_stable_decay` the rate stays where it is for a third of what comes after the warm-up, unless told."""


@contextmanager
def settled_schedule(args: Seq2SeqTrainingArguments, num_steps: int) -> Iterator[None]:
    """Complete the settings of the schedule for a run of so many updates, while it is made."""
    given: Any = args.lr_scheduler_kwargs
    settings: dict[str, Any] = dict(given or {})
    if args.lr_scheduler_type == "warmup_stable_decay" and "num_decay_steps" not in settings:
        left = num_steps - args.get_warmup_steps(num_steps)
        settings["num_decay_steps"] = max(left - settings.get("num_stable_steps", left // PLATEAU), 0)
    args.lr_scheduler_kwargs = settings
    try:
        yield
    finally:
        args.lr_scheduler_kwargs = given
