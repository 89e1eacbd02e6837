"""Direct preference optimization and its relatives: learn from pairs of a better and a worse answer."""

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .workflow import run_dpo

__all__ = ["run_dpo"]


def __getattr__(name: str) -> Any:
    """Import the entry point when it is first used: the loss alone needs neither data nor model code."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import workflow

    return getattr(workflow, name)
