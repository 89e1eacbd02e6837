"""What is done to a model once an adapter is on it, by PEFT's name of the method; the others need nothing."""

from collections.abc import Callable
from typing import Any

from peft import PeftModel

from ...extras.registry import Registry
from ..request import LoadRequest
from .carried import Carried


Ready = Callable[[PeftModel, LoadRequest | None], Carried | None]
"""Takes the model, and the request for a fresh adapter (None for a loaded one); returns what is saved beside it."""

READY: Registry[Ready] = Registry(
    "adapter",
    {
        "LORA": "llamafactory.model.adapters.start:ready_lora",
        "ADALORA": "llamafactory.model.adapters.adalora:ready_adalora",
        "PROMPT_TUNING": "llamafactory.model.adapters.prompts:ready_prompt",
        "P_TUNING": "llamafactory.model.adapters.prompts:ready_prompt",
        "PREFIX_TUNING": "llamafactory.model.adapters.prompts:ready_prompt",
    },
)


def make_ready(model: PeftModel, request: LoadRequest | None) -> Carried | None:
    """Do what the method of the active adapter needs."""
    config: Any = model.active_peft_config
    kind = str(config.peft_type.value)
    return READY.get(kind)(model, request) if kind in READY else None
