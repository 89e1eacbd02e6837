"""The attention kernel: from the user's word to the one transformers knows."""

from typing import Any

from torch import nn

from ...extras.errors import UserError
from ...extras.logging import get_logger
from ...extras.packages import is_available
from .flat_attention import FLAT_ATTENTION, can_attend_flat, register_flat_attention
from .shifted_attention import SHIFTED_ATTENTION, register_shifted_attention
from .wrapping import unwrapped


logger = get_logger(__name__)

IMPLEMENTATIONS = {
    "auto": None,
    "disabled": "eager",
    "sdpa": "sdpa",
    "fa2": "flash_attention_2",
    "fa3": "flash_attention_3",
}
PACKAGES = {"fa2": "flash_attn", "fa3": "flash_attn_interface"}


def attention_implementation(flash_attn: str) -> str | None:
    """Return transformers' name of the kernel; None leaves the model's own best one.

    All kernels compute the same thing, so a missing package costs speed only: that is a notice, not an error.
    """
    if flash_attn not in IMPLEMENTATIONS:
        raise UserError(f"flash_attn {flash_attn!r} is unknown; use one of {', '.join(IMPLEMENTATIONS)}.")
    package = PACKAGES.get(flash_attn)
    if package is not None and not is_available(package):
        logger.warning("flash_attn %s needs the package %s; the model's own kernel is used.", flash_attn, package)
        return None
    return IMPLEMENTATIONS[flash_attn]


def use_flat_attention(model: nn.Module, flash_attn: str) -> None:
    """Give a model of a training or evaluation run our own attention, where `auto` leaves the choice to us.

    Helper models (a reference, a reward model) that meet the same batches need it too. Chat keeps SDPA.
    """
    base: Any = unwrapped(model)
    if flash_attn == "auto" and hasattr(base, "set_attn_implementation") and can_attend_flat(base):
        register_flat_attention()
        base.set_attn_implementation(FLAT_ATTENTION)


def use_shifted_attention(model: nn.Module, flash_attn: str, cutoff_len: int) -> None:
    """Give a model that is trained on texts of up to `cutoff_len` tokens the attention of LongLoRA."""
    base: Any = unwrapped(model)
    in_chunks = getattr(base.config.get_text_config(), "attention_chunk_size", None) is not None
    if in_chunks or not hasattr(base, "set_attn_implementation") or not can_attend_flat(base):
        raise UserError(
            f"shift_attn: true cannot be followed: the attention of {type(base).__name__} cannot be exchanged; "
            "remove it."
        )
    if flash_attn != "auto":
        logger.info("flash_attn %s is not used: shifted attention has a kernel of its own.", flash_attn)
    base.set_attn_implementation(register_shifted_attention(cutoff_len))


def attention_in_use(model: nn.Module) -> str:
    """Return transformers' name of the kernel that a model computes with."""
    config: Any = getattr(unwrapped(model), "config", None)
    return str(getattr(config, "_attn_implementation", None) or "eager")


def shares_prefixes(model: nn.Module) -> bool:
    """Whether the kernel of a model puts dialogues together that share tokens (data/shared_prefix.py)."""
    return attention_in_use(model) == FLAT_ATTENTION


def takes_bounds(model: nn.Module) -> bool:
    """Whether the kernel of a model takes the bounds of documents, so that it computes nothing between them."""
    name = attention_in_use(model)
    return name == FLAT_ATTENTION or name.startswith(SHIFTED_ATTENTION) or "flash" in name
