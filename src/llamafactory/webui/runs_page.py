"""The Runs page without its widgets: rows of the list, comparisons, and what its buttons do to runs.

Everything is read from the folders of the runs, and every name that a browser sends is looked up in the list again.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from ..extras.errors import UserError
from ..hparams.config import write_value
from . import jobs
from .markup import notice, table
from .places import Places
from .run_view import curve_names, show_run
from .wording import DEFAULT_LANGUAGE, LANGUAGES, page_words, words_of


Words: TypeAlias = Mapping[str, str]
STATES = ("queued", "running", "stopped", "failed", "finished")
HEADS = ("name", "state", "what", "progress", "loss", "changed")
MAX_CHOSEN = 12
"""More curves than this in one plot tell nobody anything."""
MAX_VALUE = 200
"""Characters of a setting that the table of differences shows."""
BASICS = ("model_name_or_path", "stage", "finetuning_type")


class Compared(NamedTuple):
    """What the page shows of the chosen runs."""

    html: str
    curves: list[str]
    """Names of the curves that there are."""


def state_words(language: str) -> dict[str, str]:
    """Return the names of the states."""
    language = language if language in LANGUAGES else DEFAULT_LANGUAGE
    return dict(words_of("runs.states", language)["choices"])


def list_rows(root: Path, text: str, states: Sequence[str], language: str) -> tuple[list[str], list[list[str]]]:
    """Return the ids of the runs that the filters leave, and what the table shows of each."""
    names = state_words(language)
    wanted = [state for state in states or () if state in STATES]
    rows = jobs.list_runs(root, text=str(text or "")[:500], states=wanted)
    return [row.run_id for row in rows], [_cells(row, names) for row in rows]


def chosen_runs(root: Path, run_ids: object, *, most: int = MAX_CHOSEN) -> list[str]:
    """Return the chosen runs that (still) exist; what else a browser sends is refused."""
    words = [str(item) for item in run_ids] if isinstance(run_ids, list | tuple) else []
    if len(words) > most:
        raise UserError(f"{len(words)} runs are chosen; at most {most} can be taken at once.")
    for word in words:
        jobs.find_run(root, word)
    return words


def toggled(run_ids: Sequence[str], run_id: str) -> list[str]:
    """Return the chosen runs after a click on one."""
    return [item for item in run_ids if item != run_id] if run_id in run_ids else [*run_ids, run_id]


def show_runs(root: Path, run_ids: Sequence[str], language: str) -> Compared:
    """Show one run as it stands, or several side by side."""
    words = page_words("runs", language)
    if not run_ids:
        return Compared(notice(words["none_chosen"]), [])
    if len(run_ids) == 1:
        status = jobs.read_status(jobs.find_run(root, run_ids[0]))
        view = show_run(status, language)
        parts = (view.bar, view.status, _configuration(root, run_ids[0], words), view.results, view.log)
        return Compared(_titled(run_ids[0]) + "".join(parts), curve_names(status.curves) if status.curves else [])
    compared = jobs.compare_runs(root, run_ids)
    differences = [(key, *(_value(row.get(run)) for run in run_ids)) for key, row in compared.differences.items()]
    results = [(key, *(_number(row.get(run)) for run in run_ids)) for key, row in compared.results.items()]
    parts = [
        table((words["key"], *run_ids), differences) if differences else notice(words["same"]),
        table((words["metric"], *run_ids), results) if results else "",
    ]
    return Compared("".join(parts), curve_names(compared.curves) if compared.curves else [])


def resume_runs(places: Places, run_ids: Sequence[str], *, queued: bool) -> list[str]:
    """Let runs go on, at once or one after the other from the queue."""
    return [jobs.resume(jobs.find_run(places.saves, run), queued=queued, places=places).run_id for run in run_ids]


def stop_runs(places: Places, run_ids: Sequence[str]) -> list[str]:
    """Ask running ones to save a checkpoint and end, a second time at once; take waiting ones out of the queue."""
    return _each(run_ids, lambda run: jobs.press_abort(jobs.find_run(places.saves, run)))


def delete_runs(places: Places, run_ids: Sequence[str]) -> list[str]:
    """Delete runs with everything in their folders."""
    return jobs.delete_runs(places.saves, run_ids)


def one_run(run_ids: Sequence[str], language: str) -> str:
    """Return the only chosen run."""
    if len(run_ids) != 1:
        raise UserError(page_words("runs", language)["one_only"])
    return run_ids[0]


def _each(run_ids: Sequence[str], action: Callable[[str], object]) -> list[str]:
    for run in run_ids:
        action(run)
    return list(run_ids)


def _cells(row: "jobs.RunRow", states: Words) -> list[str]:
    progress = jobs.read_progress(row.run_dir)
    share = "" if progress.percentage is None else f"{progress.percentage:.0f} %"
    kind = row.command if row.command != "train" else str(row.config.get("stage", "sft"))
    kind = kind if row.command != "train" or row.config.get("do_train") else f"{kind} (eval)"
    loss = progress.metrics.get("loss")
    changed = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.changed))
    return [row.run_id, states.get(row.state, row.state), kind, share, "" if loss is None else f"{loss:.4f}", changed]


def _configuration(root: Path, run_id: str, words: Words) -> str:
    config = jobs.clone_run(root, run_id).config
    return table((words["key"], ""), [(key, _value(value)) for key, value in config.items()]) if config else ""


def _titled(run_id: str) -> str:
    from .markup import escape

    return f"<h3>{escape(run_id)}</h3>"


def _value(value: Any) -> str:
    text = "" if value is None else write_value(value)
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}..."


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
