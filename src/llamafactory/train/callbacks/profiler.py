"""Where the time of a step goes: traces of torch's profiler, and the time of chosen modules.

The traces (one folder per process) open in Perfetto and chrome://tracing. Module times are sums over all their
forward calls since the last log; on a GPU they are measured with events, so that nothing waits in between.
"""

import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler
from transformers import TrainerCallback

from ...extras.errors import UserError
from ...extras.logging import get_logger


if TYPE_CHECKING:
    from ...hparams import TrainingArguments

logger = get_logger(__name__)


def profiler_callbacks(training: "TrainingArguments") -> list[TrainerCallback]:
    """Return the callbacks that the profiler keys ask for."""
    callbacks: list[TrainerCallback] = []
    if training.enable_torch_profiler:
        callbacks.append(TraceCallback(training))
    if training.profile_modules:
        callbacks.append(ModuleTimes(training.profile_modules))
    return callbacks


class TraceCallback(TrainerCallback):
    """Records whole optimizer steps, in cycles of wait, warm-up and active ones."""

    def __init__(self, training: "TrainingArguments") -> None:
        self._training = training
        self._profiler: profile | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        training = self._training
        folder = Path(training.profiler_output_dir or Path(args.output_dir) / "profiler")
        folder = folder / f"rank_{args.process_index}"
        accelerators = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        self._profiler = profile(
            activities=[ProfilerActivity.CPU, *accelerators],
            schedule=schedule(
                wait=training.profiler_wait_steps,
                warmup=training.profiler_warmup_steps,
                active=training.profiler_active_steps,
                repeat=training.profiler_repeat,
            ),
            on_trace_ready=tensorboard_trace_handler(str(folder)),
            record_shapes=training.profiler_record_shapes,
            profile_memory=training.profiler_profile_memory,
            with_stack=training.profiler_with_stack,
        )
        self._profiler.start()
        logger.info(f"The profiler writes to {folder}.")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._profiler is not None:
            self._profiler.step()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None


class ModuleTimes(TrainerCallback):
    """Logs the forward time of the modules whose names match a pattern, as time/<name> in seconds."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = patterns
        self._hooks: list[Any] = []
        self._spans: dict[str, list[Callable[[], float]]] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        named: list[tuple[str, nn.Module]] = list(model.named_modules())
        chosen = [(name, part) for name, part in named if any(fnmatch(name, item) for item in self._patterns)]
        if not chosen:
            raise UserError(
                f"profile_modules {','.join(self._patterns)!r} matches no module of the model; its modules are called "
                f"like {named[-1][0]!r} (patterns with * are allowed)."
            )
        for name, part in chosen:
            self._watch(name, part)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs is not None and "loss" in logs:
            logs.update({f"time/{name}": sum(span() for span in spans) for name, spans in self._spans.items()})
            self._spans = {name: [] for name in self._spans}

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _watch(self, name: str, module: nn.Module) -> None:
        self._spans[name] = []
        started: list[Callable[[], Callable[[], float]]] = []

        def before(module: nn.Module, inputs: Any) -> None:
            started.append(start_clock())

        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            self._spans[name].append(started.pop()())

        self._hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def start_clock() -> Callable[[], Callable[[], float]]:
    """Start to measure; the result stops it, and the result of that tells the seconds."""
    if not torch.cuda.is_available():
        begin = time.perf_counter()

        def stop() -> Callable[[], float]:
            seconds = time.perf_counter() - begin
            return lambda: seconds

        return stop

    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()

    def stop_event() -> Callable[[], float]:
        last.record()

        def seconds() -> float:
            last.synchronize()
            return first.elapsed_time(last) / 1000

        return seconds

    return stop_event
