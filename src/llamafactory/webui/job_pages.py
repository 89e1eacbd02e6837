"""Evaluation and export as jobs: their configurations, their folders, and what a page shows of them."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..extras.constants import PREDICTIONS
from ..extras.errors import UserError
from . import jobs
from .exchange import to_yaml, without_secrets
from .places import Places, plain_name
from .wording import page_words


Kind = Literal["eval", "export"]
VERIFIED = "verified"
"""The export command says this once the folder was read back and compared; then, and only then, it has succeeded."""


class Job(NamedTuple):
    """A job that is to be started."""

    config: dict[str, Any]
    run_dir: Path
    command: str


def eval_job(config: Mapping[str, Any], places: Places, *, model: str, method: str, name: str) -> Job:
    """Return the job that measures a model, or lets it answer and scores that."""
    run_dir = places.run_dir(model, method, name)
    goal = "do_predict" if config.get("predict_with_generate") else "do_eval"
    values = {**config, goal: True, "output_dir": places.shown(run_dir)}
    return Job({key: value for key, value in values.items() if value != "" or key == "template"}, run_dir, "train")


def export_job(config: Mapping[str, Any], places: Places, *, model: str) -> Job:
    """Return the job that exports a model; its own folder, with its log, lies among the runs."""
    target = str(config.get("export_dir") or "").strip()
    if not target:
        raise UserError("export_dir is missing; name the folder for the model.")
    places.readable(target, "folder for the model")
    run_dir = places.saves / plain_name(model) / "export" / f"{plain_name(Path(target).name)}_{time_name()}"
    return Job(dict(config), run_dir, "export")


def start_job(job: Job, places: Places, form: Mapping[str, Any]) -> "jobs.Run":
    """Start a job that nobody has to wait for."""
    options = jobs.Options(run_dir=job.run_dir, command=job.command, form=dict(form))
    return jobs.start(job.config, options, places=places)


def job_problems(job: Job, places: Places) -> list[str]:
    """Return what is wrong with a job, one sentence each."""
    return list(dict.fromkeys(item.message for item in jobs.find_problems(job.config, job.command, places)))


def job_yaml(job: Job) -> str:
    """Return the configuration as a file that repeats the job on the command line."""
    return to_yaml(without_secrets(job.config, job.command))


def list_jobs(places: Places, kind: Kind) -> "list[jobs.RunRow]":
    """Return exports, or the runs that measured something without training, newest first."""
    rows = jobs.list_runs(places.saves)
    if kind == "export":
        return [row for row in rows if row.command == "export"]
    return [row for row in rows if row.command == "train" and (not row.config.get("do_train") or has_predictions(row))]


def newest_job(rows: "Sequence[jobs.RunRow]") -> str | None:
    """Return the job to show first: one that runs, else the newest."""
    running = next((row for row in rows if row.state == "running"), rows[0] if rows else None)
    return running.run_id if running else None


def has_predictions(row: "jobs.RunRow") -> bool:
    """Whether a run left predictions."""
    return (row.run_dir / PREDICTIONS).is_file()


def verification(status: "jobs.Status", config: Mapping[str, Any], language: str) -> str:
    """Return the sentence that the export was verified; "" for one that is not over, or failed."""
    if status.state != "finished" or VERIFIED not in status.log_tail:
        return ""
    return page_words("export", language)["verified"].format(folder=config.get("export_dir", ""))


def time_name(prefix: str = "") -> str:
    """Return a name made of the time, as new runs get."""
    return f"{prefix}{time.strftime('%Y-%m-%d-%H-%M-%S')}"
