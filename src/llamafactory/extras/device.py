"""What this machine computes with. Torch is imported only by the functions that must ask it."""

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal


if TYPE_CHECKING:
    import torch

Kind = Literal["cuda", "npu", "xpu", "mps", "cpu"]
DEVICE_FILES = ("nvidia[0-9]*", "davinci[0-9]*", "kfd", "dxg", "accel/accel*", "dri/renderD*")


@dataclass(frozen=True)
class DeviceFacts:
    """The accelerator that runs the model, or the CPU."""

    kind: Kind
    count: int
    """How many of them this process can see; 1 for the CPU."""
    bf16: bool
    """Whether bfloat16 is fast here, not merely possible."""
    name: str


@functools.cache
def device_facts() -> DeviceFacts:
    """Ask torch which device there is, how many, and whether it does bfloat16 well."""
    import torch

    if torch.cuda.is_available():
        return DeviceFacts("cuda", torch.cuda.device_count(), torch.cuda.is_bf16_supported(), _name(torch.cuda))
    npu: Any = getattr(torch, "npu", None)  # torch_npu hangs its module there
    if npu is not None and npu.is_available():
        return DeviceFacts("npu", npu.device_count(), bool(npu.is_bf16_supported()), _name(npu))
    if torch.xpu.is_available():
        return DeviceFacts("xpu", torch.xpu.device_count(), torch.xpu.is_bf16_supported(), _name(torch.xpu))
    if torch.backends.mps.is_available():
        return DeviceFacts("mps", 1, False, "Apple GPU")
    return DeviceFacts("cpu", 1, _cpu_has_fast_bf16(), "CPU")


def current_device(local_rank: int = 0) -> "torch.device":
    """Return the device of the process with this local rank."""
    import torch

    kind = device_facts().kind
    return torch.device(kind) if kind in ("cpu", "mps") else torch.device(kind, local_rank)


def may_have_several_devices(root: Path = Path("/dev")) -> bool:
    """Say False when the device files show at most one accelerator, so that nobody needs to ask torch.

    Every driver leaves files under /dev on Linux; elsewhere only Windows can hold several accelerators.
    """
    if sys.platform == "darwin":
        return False
    if not sys.platform.startswith("linux"):
        return True
    if any(list(root.glob(pattern)) for pattern in ("kfd", "dxg", "accel/accel*")):
        return True  # AMD, WSL: the files do not tell how many
    return any(len(list(root.glob(pattern))) > 1 for pattern in ("nvidia[0-9]*", "davinci[0-9]*", "dri/renderD*"))


def num_devices() -> int:
    """Count the accelerators; 0 when there is only the CPU."""
    if not may_have_several_devices():
        return 1 if any(list(Path("/dev").glob(pattern)) for pattern in DEVICE_FILES) else 0
    facts = device_facts()
    return 0 if facts.kind == "cpu" else facts.count


def _name(backend: Any) -> str:
    return str(backend.get_device_name(0))


def _cpu_has_fast_bf16() -> bool:
    import torch

    probe: Any = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(torch.backends.mkldnn.is_available() and probe is not None and probe())
