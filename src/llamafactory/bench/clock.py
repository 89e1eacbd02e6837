"""Notes the time of every training step, on either side: wall and processor seconds, losses, and the Trainer's share.

The Trainer's share is the time in which no forward pass, backward pass or update runs: from the end of an update (or
of a backward pass that is not the step's last) to the next forward pass. Fetching batches, logging and the learning
rate fall into it.
"""

import time
from itertools import pairwise
from typing import Any

from transformers import TrainerCallback

from .job import Job
from .worker import process_age


class Clock(TrainerCallback):
    """Both sides take this callback; it costs a few microseconds a step."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.gaps: list[float] = []
        self.losses: list[float] = []
        self.grad_norms: list[float] = []
        self.startup = (0.0, 0.0)
        self._gap = 0.0
        self._idle_since: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["model"].register_forward_pre_hook(self._end_gap)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.wall and not any(self.startup):
            self.begin()

    def begin(self) -> None:
        """The first step begins now."""
        self.startup = (process_age(), time.process_time())
        self._began = (time.perf_counter(), time.process_time())

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._idle_since = time.perf_counter()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._idle_since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.mark()

    def mark(self) -> None:
        """A step is over."""
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())
        self.gaps.append(self._gap)
        self.job.advance()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.note(float(logs["loss"]), float(logs.get("grad_norm", 0.0)))

    def note(self, loss: float, grad_norm: float) -> None:
        """Keep what a step showed."""
        self.losses.append(round(loss, 6))
        self.grad_norms.append(round(grad_norm, 6))

    def figures(self, tokens: list[int], supervised: list[int]) -> dict[str, Any]:
        """Return what was measured; both lists hold one count a step, padding left out."""
        warmup = self.job.warmup
        wall, cpu = ([self._began[which], *marks] for which, marks in enumerate((self.wall, self.cpu)))
        seconds, cpu_seconds = wall[-1] - wall[warmup], cpu[-1] - cpu[warmup]
        num_tokens, num_supervised = sum(tokens[warmup:]), sum(supervised[warmup:])
        gaps = self.gaps[-1] - (self.gaps[warmup - 1] if warmup else 0.0)
        steps = [round(end - start, 4) for start, end in pairwise(wall)]
        return {
            "startup_s": round(self.startup[0], 3),
            "startup_cpu_s": round(self.startup[1], 3),
            "first_step_s": steps[0],
            "first_step_cpu_s": round(cpu[1] - cpu[0], 3),
            "warmup_s": round(wall[warmup] - wall[0], 3),
            "step_s": steps,
            "measured_s": round(seconds, 4),
            "measured_cpu_s": round(cpu_seconds, 4),
            "tokens": num_tokens,
            "supervised_tokens": num_supervised,
            "tokens_per_s": num_tokens / seconds,
            "supervised_tokens_per_s": num_supervised / seconds,
            "cpu_s_per_1000_tokens": 1000 * cpu_seconds / num_tokens,
            "trainer_share": gaps / seconds,
            "losses": self.losses[: len(self.wall)],
            "grad_norms": self.grad_norms[: len(self.wall)],
        }

    def _end_gap(self, *args: Any) -> None:
        if self._idle_since is not None:
            self._gap += time.perf_counter() - self._idle_since
            self._idle_since = None
