"""A process of the benchmark: `python -m llamafactory.bench.worker JOB.json`."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from ..extras.errors import UserError
from ..extras.logging import setup_logging
from ..extras.registry import load_attribute
from .job import Job


def main(path: str) -> int:
    """Do one job; its answer is written beside it. A mistake of the user is one sentence and exit code 2."""
    setup_logging()
    job = Job.load(Path(path))
    try:
        result: dict[str, Any] = load_attribute(job.run)(job)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return UserError.exit_code
    result["peak_rss_mib"] = round(peak_rss() / 2**20, 1)
    result["process_s"] = round(process_age(), 3)
    result["process_cpu_s"] = round(time.process_time(), 3)
    job.result_file.write_text(json.dumps(result), encoding="utf-8")
    return 0


def peak_rss() -> int:
    """Return the most bytes that this process held.

    getrusage also remembers the process that started this one, /proc does not.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024

    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def process_age() -> float:
    """Return the seconds since this process was started, the interpreter's own start included."""
    stat = Path("/proc/self/stat")
    if not stat.is_file():
        return time.process_time()
    ticks = int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
