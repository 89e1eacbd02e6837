"""Models: where they come from, how they are loaded, and which of their weights learn."""

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .adapter import init_adapter
    from .loader import TokenizerModule, load_config, load_model, load_tokenizer
    from .model_utils.valuehead import load_valuehead_params
    from .modules import find_all_linear_modules


_HOMES = {
    "TokenizerModule": "loader",
    "find_all_linear_modules": "modules",
    "init_adapter": "adapter",
    "load_config": "loader",
    "load_model": "loader",
    "load_tokenizer": "loader",
    "load_valuehead_params": "model_utils.valuehead",
}

__all__ = [
    "TokenizerModule",
    "find_all_linear_modules",
    "init_adapter",
    "load_config",
    "load_model",
    "load_tokenizer",
    "load_valuehead_params",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing this package does not import torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
