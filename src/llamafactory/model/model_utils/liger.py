"""Liger's fused kernels (https://github.com/linkedin/Liger-Kernel), where they are asked for and can run.

They are put onto this model's norms and feed-forward blocks. The loss and the head stay ours, which compute learned
tokens only; so does the rotary embedding, which Liger would exchange for every model of the process.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn

from ...extras.device import Kind
from ...extras.logging import get_logger
from ...extras.packages import is_available
from .wrapping import unwrapped


logger = get_logger(__name__)

PACKAGE = "liger_kernel"
OURS = ("rope", "cross_entropy", "fused_linear_cross_entropy")


def use_liger(model: nn.Module, config: Mapping[str, bool] | None, kind: Kind) -> bool:
    """Put Liger's kernels onto a model and tell whether that was done; one line says why not.

    They compute the same as the model's own code, so going without them costs speed only. `config` switches them on
    and off by Liger's own names.
    """
    lacks = missing_for_liger(model, kind)
    if lacks is not None:
        logger.warning("enable_liger_kernel: true is not followed: %s; the run goes on with its own kernels.", lacks)
        return False
    patch: Any = import_module(f"{PACKAGE}.transformers")
    patch._apply_liger_kernel_to_instance(model=unwrapped(model), **{**(config or {}), **dict.fromkeys(OURS, False)})
    asked = [name for name in OURS if (config or {}).get(name)]
    kept = f"; {', '.join(asked)} stays ours" if asked else ""
    logger.info(
        "Liger's kernels serve the norms and feed-forward blocks of %s%s.", type(unwrapped(model)).__name__, kept
    )
    return True


def missing_for_liger(model: nn.Module, kind: Kind) -> str | None:
    """Say what Liger lacks for this model on this device; None when it can run."""
    if kind != "cuda":
        return f"Liger needs a CUDA device, and this one is {kind}"
    if not is_available(PACKAGE):
        return "the package liger-kernel is not installed (pip install liger-kernel)"
    known: Mapping[str, Any] = import_module(f"{PACKAGE}.transformers.monkey_patch").MODEL_TYPE_TO_APPLY_LIGER_FN
    model_type = str(getattr(unwrapped(model).config, "model_type", ""))
    return None if model_type in known else f"Liger has no kernels for models of the type {model_type}"
