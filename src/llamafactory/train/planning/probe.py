"""One real step of the run, to tell the time: the run's own workflow, in a folder that is thrown away."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ...extras.device import DeviceFacts
from ...extras.peak import PeakMemory
from ..optimizers.making import check_optimizer
from ..stage import RunArguments, Stage
from ..workflow import prepare
from .figures import DataFigures, ProbeFigures


STEPS = 2
"""The first one builds kernels and makes the optimizer's states, the second one is timed."""
SLOW = 120.0
"""A first step of so many seconds is the only one."""


class StepClock(TrainerCallback):
    """Notes when steps begin and end, and stops after a slow one."""

    def __init__(self) -> None:
        self.began = 0.0
        self.seconds = 0.0
        self.step = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = self.began or time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        self.seconds, self.began, self.step = now - self.began, now, state.global_step
        if self.seconds > SLOW:
            control.should_training_stop = True


class TokenCounts(TrainerCallback):
    """Notes how many tokens had been learned at each log."""

    def __init__(self) -> None:
        self.meter: Any = None
        self.counts = [0]

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.meter is not None:
            self.counts.append(self.meter.num_tokens)


def run_probe(stage: Stage, arguments: RunArguments, data: DataFigures, facts: DeviceFacts) -> ProbeFigures:
    """Run it; what it learned is forgotten."""
    check_optimizer(arguments.training.optim, arguments.finetuning)
    clock, tokens = StepClock(), TokenCounts()
    peak = PeakMemory(facts)
    with tempfile.TemporaryDirectory() as folder:
        run = prepare(stage, for_probe(arguments, Path(folder)), [clock])
        tokens.meter = run.trainer.meter
        run.trainer.add_callback(tokens)
        run.trainer.train()
    learned = max(tokens.counts[clock.step] - tokens.counts[clock.step - 1], 1)
    return ProbeFigures(
        seconds_per_step=round(clock.seconds, 3),
        tokens_per_second=round(learned / clock.seconds, 1),
        total_seconds=total_seconds(data, clock.seconds, learned),
        peak=peak.read(),
    )


def total_seconds(data: DataFigures, seconds: float, learned: int) -> float | None:
    """Return the time of all steps; batches differ in length, so a step counts by its tokens where they are known."""
    if data.num_steps is None:
        return None
    mean = seconds
    if data.tokens_per_epoch is not None and data.steps_per_epoch and not data.writes_answers:
        mean = seconds * data.tokens_per_epoch / data.steps_per_epoch / data.num_devices / learned
    return round(mean * data.num_steps, 1)


def for_probe(arguments: RunArguments, folder: Path) -> RunArguments:
    """Return the arguments of a run of a step or two that leaves nothing behind."""
    training = replace(
        arguments.training,
        output_dir=str(folder),
        overwrite_output_dir=True,
        resume_from_checkpoint=None,
        do_eval=False,
        do_predict=False,
        eval_strategy="no",
        load_best_model_at_end=False,
        save_strategy="no",
        logging_strategy="steps",
        logging_steps=1,
        max_steps=STEPS,
        report_to=("none",),
        push_to_hub=False,
        disable_tqdm=True,
        enable_torch_profiler=False,
    )
    finetuning = replace(arguments.finetuning, plot_loss=False, use_swanlab=False, early_stopping_steps=None)
    return arguments._replace(
        training=training, finetuning=finetuning, data=replace(arguments.data, eval_dataset=None)
    )
