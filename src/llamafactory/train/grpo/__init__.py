"""GRPO: learn from rewards by comparing several answers to one prompt."""

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .workflow import run_grpo

__all__ = ["run_grpo"]


def __getattr__(name: str) -> Any:
    """Import the entry point when it is first used: the loss alone needs neither data nor model code."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import workflow

    return getattr(workflow, name)
