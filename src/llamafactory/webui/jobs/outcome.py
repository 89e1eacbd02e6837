"""How a job ended: from its exit code where somebody saw it, else from what it left."""

import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ...train.checkpoints import STATE_FILE, checkpoint_step
from .failures import find_reason
from .files import CONFIG_FILES, JOB_FILE, OUTPUT_FILE, read_tail
from .record import Outcome, Record, lock, read_record, read_stop, write_record


STOP_CODES = frozenset(
    code for number in (signal.SIGINT, signal.SIGTERM) for code in (-int(number), 128 + int(number))
)
RESULTS = {
    "do_train": "train_results.json",
    "do_eval": "eval_results.json",
    "do_predict": "predict_results.json",
}
REASON_BYTES = 64_000
CLOCK_SLACK = 2.0  # file systems round times


def settle(run_dir: Path, exit_code: int | None) -> Record:
    """Write down how a job ended, once: whoever comes later finds it ended already."""
    with lock(run_dir):
        record = read_record(run_dir)
        if record is None:
            raise FileNotFoundError(run_dir / JOB_FILE)
        if record.phase == "ended":
            return record
        record = ended(run_dir, record, exit_code)
        write_record(run_dir, record)
    return record


def ended(run_dir: Path, record: Record, exit_code: int | None) -> Record:
    """Return the job with its end."""
    was_asked = read_stop(run_dir) is not None
    step = saved_step(run_dir)
    outcome = _outcome(run_dir, record, exit_code, was_asked)
    if outcome == "finished":
        reason = ""
    elif outcome == "stopped":
        reason = f"stopped, saved step {step}" if step is not None else "stopped before anything was saved"
    else:
        reason = find_reason(read_tail(run_dir / OUTPUT_FILE, REASON_BYTES, record.output_start), exit_code)
    return replace(
        record,
        phase="ended",
        ended=time.time(),
        exit_code=exit_code,
        outcome=outcome,
        reason=reason,
        saved_step=step,
    )


def saved_step(run_dir: Path) -> int | None:
    """Return the step of the newest checkpoint; a folder has that name only once it is complete."""
    steps = [checkpoint_step(folder) for folder in run_dir.glob("checkpoint-*") if (folder / STATE_FILE).is_file()]
    return max(steps, default=-1) if any(step >= 0 for step in steps) else None


def job_config(run_dir: Path, command: str) -> dict[str, Any]:
    """Return what the job was told, with the types of the file."""
    return read_yaml(run_dir / CONFIG_FILES[command])


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a file of keys and values; empty when there is none, or none that can be read."""
    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def load_yaml(text: str) -> Any:
    """Read plain data, as yaml.safe_load does, through libyaml where PyYAML was built with it: ten times faster."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _outcome(run_dir: Path, record: Record, exit_code: int | None, was_asked: bool) -> Outcome:
    was_stopped = was_asked or exit_code in STOP_CODES
    if exit_code == 0 or ((was_stopped or exit_code is None) and _left_results(run_dir, record)):
        return "finished"
    if was_stopped:
        return "stopped"
    return "failed"


def _left_results(run_dir: Path, record: Record) -> bool:
    """Whether every part of the job has left its result since it was started."""
    config = job_config(run_dir, record.command)
    if record.command == "export":
        marks = [Path(record.cwd, str(config.get("export_dir", "")), "config.json")]
    else:
        marks = [run_dir / name for key, name in RESULTS.items() if config.get(key) is True]
    since = (record.started or record.created) - CLOCK_SLACK
    return bool(marks) and all(mark.is_file() and mark.stat().st_mtime >= since for mark in marks)
