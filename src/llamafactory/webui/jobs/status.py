"""All that a page shows of one run, read from its folder: the page itself knows nothing about the run."""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...extras.logging import redact
from .failures import plain_lines
from .files import ALL_RESULTS, CONFIG_FILES, OUTPUT_FILE, read_tail
from .outcome import saved_step
from .processes import memory_bytes
from .progress import Curve, Progress, read_curves, read_progress
from .queue import position, wake
from .record import Record, read_record, read_stop
from .state import State, refresh, state_by_files, state_of


LOG_BYTES = 20_000
LOG_LINES = 400
LINK_BYTES = 64_000
SWANLAB_LINK = re.compile(r"swanlab[^\n]*?(https?://[\w.:@%~/-]+/runs/[\w-]+)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Status:
    """A run at this moment. Texts are what programs wrote: escape them before they become part of a page."""

    run_dir: Path
    command: str
    state: State
    is_stopping: bool = False
    """Whether it was asked to end and still runs."""
    waits_behind: int | None = None
    """How many jobs of the queue come first; None when it does not wait."""
    progress: Progress
    curves: dict[str, Curve]
    log_tail: str
    reason: str = ""
    """One sentence on why it did not finish."""
    saved_step: int | None = None
    results: dict[str, float]
    """The final metrics."""
    swanlab_link: str = ""
    """Where SwanLab shows the run, if it said so."""
    exit_code: int | None = None
    seconds: float | None = None
    """How long it has run, or ran."""
    started: float | None = None
    ended: float | None = None

    @property
    def is_over(self) -> bool:
        return self.state in ("stopped", "failed", "finished")


def read_status(run_dir: Path, *, with_curves: bool = True) -> Status:
    """Read everything about one run; a run that the board did not start is told by its files alone."""
    record = read_record(run_dir)
    if record is not None:
        record = refresh(run_dir, record)
    state: State = state_of(record) if record is not None else state_by_files(run_dir)
    if record is not None and state == "queued":
        wake(Path(record.root))
    progress = read_progress(run_dir)
    return Status(
        run_dir=run_dir,
        command=record.command if record is not None else "train",
        state=state,
        is_stopping=state == "running" and read_stop(run_dir) is not None,
        waits_behind=position(Path(record.root), run_dir) if record is not None and state == "queued" else None,
        progress=progress if progress.memory_gib is not None else _with_memory(progress, record, state),
        curves=read_curves(run_dir) if with_curves else {},
        log_tail=read_log(run_dir, record),
        reason=record.reason if record is not None else "",
        saved_step=saved_step(run_dir),
        results=read_results(run_dir),
        swanlab_link=read_swanlab_link(run_dir),
        exit_code=record.exit_code if record is not None else None,
        seconds=_seconds(record),
        started=record.started if record is not None else None,
        ended=record.ended if record is not None else None,
    )


def read_log(run_dir: Path, record: Record | None = None) -> str:
    """Return the end of what the newest start of a run printed: progress bars as their last state, no tokens."""
    start = record.output_start if record is not None else 0
    lines = plain_lines(read_tail(run_dir / OUTPUT_FILE, LOG_BYTES, start))
    return redact("\n".join(lines[-LOG_LINES:]).strip("\n"))


def read_results(run_dir: Path) -> dict[str, float]:
    """Return the metrics that a finished run left."""
    try:
        values: Any = json.loads((run_dir / ALL_RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    items = values.items() if isinstance(values, dict) else ()
    return {str(key): value for key, value in items if isinstance(value, int | float)}


def read_swanlab_link(run_dir: Path) -> str:
    """Return the address at which SwanLab shows a run; it says so when the run begins, and again when it ends."""
    try:
        with (run_dir / OUTPUT_FILE).open("rb") as file:
            head = file.read(LINK_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return ""
    found = SWANLAB_LINK.findall(head) or SWANLAB_LINK.findall(read_tail(run_dir / OUTPUT_FILE, LOG_BYTES))
    return str(found[-1]) if found else ""


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, of the board or of the command line."""
    names = (*CONFIG_FILES.values(), "job.json", "trainer_log.jsonl", "resolved_config.yaml", ALL_RESULTS)
    return any((folder / name).is_file() for name in names)


def _with_memory(progress: Progress, record: Record | None, state: State) -> Progress:
    """Without an accelerator, a run's memory is that of its processes."""
    if record is None or record.child is None or state != "running":
        return progress
    values = {**vars(progress), "memory_gib": round(memory_bytes(record.child) / 1024**3, 2)}
    return Progress(**values)


def _seconds(record: Record | None) -> float | None:
    if record is None or record.started is None:
        return None
    return max((record.ended or time.time()) - record.started, 0.0)
