"""Which accelerators the machine has, and the environment that gives some of them to a job."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from ...extras.device import device_facts, num_devices
from ...extras.env import read_variable


CUDA_VARIABLE = "CUDA_VISIBLE_DEVICES"
VISIBLE = {"cuda": CUDA_VARIABLE, "npu": "ASCEND_RT_VISIBLE_DEVICES", "xpu": "ZE_AFFINITY_MASK"}
QUERY = ("nvidia-smi", "--query-gpu=index,name,memory.total,memory.used", "--format=csv,noheader,nounits")
QUERY_SECONDS = 10


@dataclass(frozen=True, kw_only=True)
class Device:
    """One accelerator."""

    index: int
    name: str
    memory_gib: float | None = None
    used_gib: float | None = None


def list_devices() -> list[Device]:
    """Return the accelerators that this process may hand out; empty where there is only the CPU."""
    found = _ask_nvidia()
    if not found and num_devices():
        facts = device_facts()
        found = [Device(index=index, name=facts.name) for index in range(facts.count if facts.kind != "cpu" else 0)]
    allowed = _allowed(read_variable(CUDA_VARIABLE))
    return found if allowed is None else [device for device in found if device.index in allowed]


def device_variables(devices: Sequence[int], processes: int | None) -> dict[str, str]:
    """Return the environment for a job: which devices it sees, and how many workers torchrun starts."""
    variables: dict[str, str] = {}
    if devices:
        names = VISIBLE.values() if not shutil.which(QUERY[0]) else (CUDA_VARIABLE,)
        variables = dict.fromkeys(names, ",".join(str(index) for index in devices))
    count = processes or len(devices)
    if count:
        variables["NPROC_PER_NODE"] = str(count)
        variables["FORCE_TORCHRUN"] = "1" if count > 1 else "0"
    return variables


def _ask_nvidia() -> list[Device]:
    """Ask the driver's own tool, which costs less than importing torch and holds no memory on the device."""
    program = shutil.which(QUERY[0])
    if program is None:
        return []
    try:
        answer = subprocess.run(
            [program, *QUERY[1:]], capture_output=True, text=True, timeout=QUERY_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [device for line in answer.stdout.splitlines() if (device := _read_line(line)) is not None]


def _read_line(line: str) -> Device | None:
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 4 or not parts[0].isdigit():
        return None
    total, used = (_gib(part) for part in parts[2:])
    return Device(index=int(parts[0]), name=parts[1], memory_gib=total, used_gib=used)


def _gib(text: str) -> float | None:
    return round(int(text) / 1024, 1) if text.isdigit() else None


def _allowed(text: str) -> set[int] | None:
    """Return the numbers that the server itself was given; None when it was given all, or names instead of numbers."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return {int(part) for part in parts} if parts and all(part.isdigit() for part in parts) else None
