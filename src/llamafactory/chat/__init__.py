"""Chat: one interface over the engines that generate answers."""

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .base_engine import BaseEngine
    from .chat_model import ChatModel


_HOMES = {"BaseEngine": "base_engine", "ChatModel": "chat_model"}

__all__ = ["BaseEngine", "ChatModel"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing this package does not import torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
