"""The attention kernel: from the user's word to the one transformers knows."""

from ...extras.errors import UserError
from ...extras.logging import get_logger
from ...extras.packages import is_available


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
