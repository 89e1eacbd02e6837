"""Names that code written against this kind of tool imports; thin over `device` and `env`."""

from typing import TYPE_CHECKING

from .device import current_device, device_facts
from .env import TRUTHY, is_enabled, read_env


if TYPE_CHECKING:
    import torch


def get_current_device() -> "torch.device":
    """Return the device that this process computes on."""
    return current_device(read_env().local_rank or 0)


def get_device_count() -> int:
    """Count the accelerators that torch sees; 0 when there is only the CPU."""
    facts = device_facts()
    return 0 if facts.kind == "cpu" else facts.count


def is_env_enabled(env_var: str, default: str = "0") -> bool:
    """Read an environment variable as a switch."""
    return is_enabled(env_var, default.strip().lower() in TRUTHY)
