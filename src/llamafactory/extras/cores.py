"""How many processor cores there are to compute on, and setting torch's threads to that.

Two hyper-threads of a core share its matrix units, so a second thread there only gets in the way. A container may hold
less processor time than the machine has cores; torch does not look at that.
"""

import os
from collections.abc import Callable
from pathlib import Path

from .env import read_variable


THREADS = "OMP_NUM_THREADS"
TOPOLOGY = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
QUOTA = "sys/fs/cgroup/cpu.max"  # "max 100000", or microseconds of each period
OLD_QUOTA = ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "sys/fs/cgroup/cpu/cpu.cfs_period_us")


def usable_cores(root: Path = Path("/")) -> int:
    """Return the physical cores that this process may run on, within its container's share of time."""
    has_affinity = hasattr(os, "sched_getaffinity")
    allowed = os.sched_getaffinity(0) if has_affinity else set(range(os.cpu_count() or 1))
    cores = {_read(root / TOPOLOGY.format(number)) or str(number) for number in allowed}
    quota = _quota(root)
    return max(len(cores) if quota is None else min(len(cores), quota), 1)


def settle_threads(set_number: Callable[[int], None], current: int) -> int:
    """Give torch one thread per usable core unless the user said otherwise; returns the number.

    Where it has fewer already (a worker among several), that stays.
    """
    if read_variable(THREADS):
        return current
    wanted = usable_cores()
    if wanted < current:
        set_number(wanted)
        return wanted
    return current


def _quota(root: Path) -> int | None:
    """Return the whole cores that the container's time is worth; None without a limit."""
    words = (_read(root / QUOTA) or "").split()
    if len(words) < 2:
        words = [_read(root / name) or "" for name in OLD_QUOTA]
    if len(words) < 2 or not (words[0].isdigit() and words[1].isdigit()) or int(words[1]) == 0:
        return None
    return max(int(words[0]) // int(words[1]), 1)


def _read(path: Path) -> str | None:
    return path.read_text(encoding="ascii").strip() if path.is_file() else None
