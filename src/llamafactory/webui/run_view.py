"""One run as HTML and as points of a plot: what `jobs` reads out of its folder, in the visitor's language."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from . import jobs
from .markup import cards, link, log_text, notice, progress_bar, table
from .wording import say, translate_reason


if TYPE_CHECKING:
    from pandas import DataFrame

SHOWN_STATE = {"finished": "good", "failed": "problem", "stopped": "warning"}
LOSS = "loss"


class RunView(NamedTuple):
    """The parts of the page that show one run."""

    bar: str
    status: str
    log: str
    results: str


def find_shown(root: Path, run_id: str | None) -> Path | None:
    """Return the folder of a run that the page names; None where there is none (any more)."""
    if not run_id:
        return None
    try:
        return jobs.find_run(root, run_id)
    except ValueError:
        return None


def show_run(status: "jobs.Status", language: str) -> RunView:
    """Return everything about a run but its curves."""
    progress = status.progress
    step = "" if progress.step is None else f"{progress.step} / {progress.total_steps or '?'}"
    share = None if progress.percentage is None else progress.percentage / 100
    share = 1.0 if status.state == "finished" else share
    word = say(f"state_{status.state}", language)
    if status.is_stopping:
        word = say("info_aborting", language)
    text = " - ".join(part for part in (word, step, _percent(share)) if part)
    return RunView(
        progress_bar(share, text, status.state),
        cards(_figures(status, language)) + _end(status, language),
        log_text(status.log_tail),
        _results(status.results),
    )


def empty_view(language: str) -> RunView:
    """Return what stands there before anything has run."""
    return RunView("", notice(say("info_no_run", language)), "", "")


def swanlab_link(status: "jobs.Status", language: str) -> str:
    """Return the link to a run at SwanLab; "" for one that is not there."""
    address = status.swanlab_link
    return f"<p>{link(say('info_swanlab_link', language), address)}: {link(address, address)}</p>" if address else ""


def curve_names(curves: Mapping[str, object]) -> list[str]:
    """Return the curves that can be drawn, the loss first."""
    return [LOSS, *(name for name in curves if name != LOSS)]


def curve_points(runs: Mapping[str, "jobs.Status"], name: str) -> "DataFrame":
    """Return the points of one curve of several runs as a table for gradio's line plot."""
    import pandas

    rows = [(step, value, run_id) for run_id, status in runs.items() for step, value in status.curves.get(name, ())]
    return pandas.DataFrame(rows, columns=["step", "value", "run"])


def _figures(status: "jobs.Status", language: str) -> Sequence[tuple[str, str]]:
    progress = status.progress
    metrics = progress.metrics
    elapsed = progress.elapsed or _duration(status.seconds)
    remaining = "" if status.is_over else progress.remaining
    figures = (
        ("word_epoch", _number(metrics.get("epoch"), 2)),
        ("word_loss", _number(metrics.get(LOSS), 4)),
        ("word_rate", "" if "lr" not in metrics else f"{metrics['lr']:.2e}"),
        ("word_elapsed", elapsed),
        ("word_remaining", remaining),
        ("word_speed", _number(progress.tokens_per_second, 0)),
        ("word_memory", "" if progress.memory_gib is None else f"{progress.memory_gib:.2f} GiB"),
    )
    return [(say(name, language), text) for name, text in figures if text]


def _end(status: "jobs.Status", language: str) -> str:
    if not status.is_over:
        return ""
    if status.state == "finished":
        return notice(say("info_finished", language), "good")
    reason = translate_reason(status.reason or "", language)
    message = say("err_failed", language, reason=reason) if status.state == "failed" else status.reason
    return notice(message or say("info_aborted", language), SHOWN_STATE[status.state])


def _results(results: Mapping[str, float]) -> str:
    return table(("", ""), [(name, f"{value:g}") for name, value in results.items()]) if results else ""


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%H:%M:%S", time.gmtime(seconds))
