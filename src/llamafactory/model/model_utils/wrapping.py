"""What a model is wrapped in: data parallelism, adapters."""

from typing import Any

from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model under adapters and data-parallel wrappers."""
    inner: Any = model
    while True:
        if isinstance(getattr(inner, "module", None), nn.Module):
            inner = inner.module
        elif hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        else:
            return inner
