"""The most memory that this process took since a moment: on its device, or in main memory where there is none."""

from pathlib import Path
from typing import Any

from .device import DeviceFacts


STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Written there, it starts the peak anew (proc(5))."""


class PeakMemory:
    """Starts to watch when it is made."""

    def __init__(self, facts: DeviceFacts) -> None:
        import torch

        self._backend: Any = getattr(torch, facts.kind) if facts.kind in ("cuda", "npu", "xpu") else None
        self._before: int | None = None
        if self._backend is not None:
            self._backend.reset_peak_memory_stats()
            self._before = int(self._backend.memory_allocated())
        elif STATUS.is_file() and _reset():
            self._before = _status("VmRSS")

    def read(self) -> int | None:
        """Return the bytes beyond what there was at the beginning; None where the system does not tell."""
        if self._before is None:
            return None
        now = int(self._backend.max_memory_allocated()) if self._backend is not None else _status("VmHWM")
        return max(now - self._before, 0)


def _reset() -> bool:
    try:
        RESET.write_text(RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def _status(name: str) -> int:
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
