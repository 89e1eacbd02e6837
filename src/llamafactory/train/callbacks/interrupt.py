"""Ctrl-C and SIGTERM: finish the step, save a checkpoint, say how to go on.

The first signal asks; a second one of the same kind ends the process at once, the way the system does it. (Two
different ones count as one request: torchrun answers Ctrl-C, which its workers have already seen, with SIGTERM.)
"""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from torch import Tensor
from transformers.trainer_callback import TrainerCallback

from ...extras.env import read_env


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingInterruptedError(Exception):
    """Training ended on a signal, after a checkpoint was saved."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        """What a shell reports for a process that this signal ended: 130 or 143."""
        return 128 + self.signal_number


class Interrupt:
    """Listens to signals while its `with` block runs; does nothing outside the main thread."""

    def __init__(self) -> None:
        self._own: int = 0
        self._agreed: Tensor | None = None
        self._earlier: dict[signal.Signals, Any] = {}
        self._process = os.getpid()
        self._talks = read_env().is_main_process

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    @property
    def own(self) -> int:
        """The signal that this process received, 0 for none."""
        return self._own

    def agree(self, signal_number: Tensor) -> None:
        """Take what the ranks found in common, so that all stop after the same step."""
        self._agreed = signal_number

    def due(self) -> int:
        """Return the signal to stop for after this step, 0 for none."""
        return self._own if self._agreed is None else int(self._agreed)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked data worker: the main process decides
        signal.signal(number, signal.SIG_DFL)
        if not self._own:
            self._own = number
            if self._talks:
                _say(
                    f"{signal.Signals(number).name} received: the step under way is finished and saved first; "
                    "send it again to stop at once."
                )


class InterruptCallback(TrainerCallback):
    """Saves and ends the run after the step in which a signal arrived."""

    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt
        self._stop_for = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stop_for = self._interrupt.due()
        if self._stop_for:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._stop_for:
            raise TrainingInterruptedError(self._stop_for)


def _say(line: str) -> None:
    """Write past Python's buffers: the signal may have arrived in the middle of another write."""
    os.write(2, f"\n{line}\n".encode())
