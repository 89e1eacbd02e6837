"""Runs as jobs: detached processes that a page starts, reads about and stops, and that outlive it.

Everything about a job stands in its folder below saves/, so every server sees the same, and so does one that was
started again. Nothing here imports gradio or torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .checking import JobError, Problem, find_problems
    from .devices import Device, list_devices
    from .progress import Progress, read_curves, read_progress
    from .runs import Comparison, Copy, RunRow, clone_run, compare_runs, delete_runs, find_run, list_runs
    from .starting import Options, Run, resume, start
    from .state import State
    from .status import Status, read_status
    from .stopping import abort, cancel, press_abort

__all__ = [
    "Comparison",
    "Copy",
    "Device",
    "JobError",
    "Options",
    "Problem",
    "Progress",
    "Run",
    "RunRow",
    "State",
    "Status",
    "abort",
    "cancel",
    "clone_run",
    "compare_runs",
    "delete_runs",
    "find_problems",
    "find_run",
    "list_devices",
    "list_runs",
    "press_abort",
    "read_curves",
    "read_progress",
    "read_status",
    "resume",
    "start",
]

_HOMES = {
    "checking": ("JobError", "Problem", "find_problems"),
    "devices": ("Device", "list_devices"),
    "progress": ("Progress", "read_curves", "read_progress"),
    "runs": (
        "Comparison",
        "Copy",
        "RunRow",
        "clone_run",
        "compare_runs",
        "delete_runs",
        "find_run",
        "list_runs",
    ),
    "starting": ("Options", "Run", "resume", "start"),
    "state": ("State",),
    "status": ("Status", "read_status"),
    "stopping": ("abort", "cancel", "press_abort"),
}


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: the supervisor of a job is a small process and needs none of them."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
