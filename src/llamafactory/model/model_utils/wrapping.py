"""What a model is wrapped in: data parallelism, adapters."""

from typing import Any

from peft import PeftModel
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


def has_virtual_tokens(model: nn.Module) -> bool:
    """Whether an adapter puts trained vectors before every row (model/adapters/prompts.py)."""
    return any(
        isinstance(module, PeftModel) and module.active_peft_config.is_prompt_learning for module in model.modules()
    )
