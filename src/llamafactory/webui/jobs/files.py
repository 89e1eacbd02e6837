"""The files of a job: names, and how they are written so that a reader never sees half of one."""

import os
import tempfile
from pathlib import Path


JOB_FILE = "job.json"
STOP_FILE = "job_stop.json"
LOCK_FILE = ".job.lock"
OUTPUT_FILE = "webui_subprocess.log"
FORM_FILE = "llamaboard_config.yaml"
CONFIG_FILES = {"train": "training_args.yaml", "export": "export_args.yaml", "eval": "eval_args.yaml"}
"""Command -> the file that it is started with; only these commands are jobs."""
ALL_RESULTS = "all_results.json"
BOARD_FOLDER = ".llamaboard"
"""In the root of all runs: the queue. Names that begin with a dot are never taken for runs."""


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step; two writers at once leave one of the two texts, never a mixture."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:  # a stop too: no half-written file stays
        Path(name).unlink(missing_ok=True)
        raise


def read_tail(path: Path, num_bytes: int, start: int = 0) -> str:
    """Return the end of a file, at most num_bytes and nothing before start; "" when there is no such file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            first = max(start, size - num_bytes, 0)
            file.seek(first)
            data = file.read(num_bytes)
            if first > start:
                data = data.partition(b"\n")[2] or data  # begin with a whole line
    except OSError:
        return ""
    return data.decode("utf-8", errors="replace")
