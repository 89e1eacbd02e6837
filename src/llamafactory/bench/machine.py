"""The machine and the software that a figure belongs to; no host name, no user and no path."""

import os
import platform
from pathlib import Path

from ..extras.env import is_enabled, read_variable
from ..extras.packages import package_version
from ..extras.version import VERSION


PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers")
VARIABLES = (
    "GLIBC_TUNABLES",
    "MALLOC_ARENA_MAX",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "OMP_NUM_THREADS",
    "THP_MEM_ALLOC_ENABLE",
)
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""What of the processor decides which matrix kernels run."""


def describe_machine() -> dict[str, str]:
    """Return what a reader needs to judge a figure."""
    facts = {
        "llamafactory": VERSION,
        "python": platform.python_version(),
        **{name: package_version(name) or "not installed" for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_field("model name") or platform.processor() or platform.machine(),
        "cpu features": " ".join(flag for flag in FLAGS if flag in (_cpu_field("flags") or "").split()) or "unknown",
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory": _memory(),
        "load": f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown",
    }
    facts.update({name: value for name in VARIABLES if (value := read_variable(name))})
    if read_variable("LD_PRELOAD"):
        facts["LD_PRELOAD"] = " ".join(Path(word).name for word in read_variable("LD_PRELOAD").split(":"))
    if is_enabled("CI"):
        facts["CI"] = "yes"
    return facts


def _cpu_field(name: str) -> str | None:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return None
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return None


def _memory() -> str:
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return "unknown"
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
