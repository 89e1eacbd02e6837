"""Reward modelling: learn to score answers from pairs of a better and a worse one."""

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .workflow import run_rm

__all__ = ["run_rm"]


def __getattr__(name: str) -> Any:
    """Import the entry point when it is first used: the loss alone needs neither data nor model code."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import workflow

    return getattr(workflow, name)
