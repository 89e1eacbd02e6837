"""The run that the Train tab shows: it only reads files, so a fresh page shows what the last one did."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from .. import jobs, run_view
from ..engine import Engine, as_language
from ..events import on, shown
from ..run_view import LOSS, curve_names, curve_points, empty_view, show_run, swanlab_link
from ..wording import DEFAULT_LANGUAGE


if TYPE_CHECKING:
    from gradio.blocks import Block

POLL_SECONDS = 2.0
SEARCH_SECONDS = 15.0
MAX_COMPARED = 8


def create_run_panel(engine: Engine) -> "dict[str, Block]":
    """Make the panel and what keeps it up to date."""

    def words(name: str) -> dict[str, Any]:
        return engine.words(f"train.{name}", DEFAULT_LANGUAGE)

    made: dict[str, Block] = {}
    with gr.Group(elem_classes="open"), gr.Row(elem_classes="fields"):
        made["current_run"] = gr.Dropdown([], value=None, elem_id="train-current_run", **words("current_run"))
        made["curve_name"] = gr.Dropdown([LOSS], value=LOSS, elem_id="train-curve_name", **words("curve_name"))
        made["curve_runs"] = gr.Dropdown(
            [], multiselect=True, max_choices=MAX_COMPARED, elem_id="train-curve_runs", **words("curve_runs")
        )
    made["resume_btn"] = gr.Checkbox(False, visible=False, elem_id="train-resume_btn", **words("resume_btn"))
    made["progress_bar"] = gr.HTML("", elem_id="train-progress_bar", visible=False)
    made["status_box"] = gr.HTML("", elem_id="train-status_box", visible=False)
    made["swanlab_link"] = gr.HTML("", elem_id="train-swanlab_link", visible=False)
    made["loss_viewer"] = gr.LinePlot(
        None,
        x="step",
        y="value",
        color="run",
        height=320,
        visible=False,
        elem_id="train-loss_viewer",
        buttons=["fullscreen", "export"],
        **words("loss_viewer"),
    )
    made["metrics_box"] = gr.HTML("", elem_id="train-metrics_box", visible=False)
    with gr.Accordion(open=False, elem_id="train-log_tab", elem_classes="fold", **words("log_tab")) as fold:
        made["log_box"] = gr.HTML("", elem_id="train-log_box")
    made["log_tab"] = fold
    return made


def connect_run_panel(engine: Engine, demo: Any) -> None:
    """Keep the panel up to date: at once when another run is chosen, and every two seconds."""
    get = engine.manager.get_elem_by_id
    shown, lang = get("train.current_run"), get("top.lang")
    watched = [shown, get("train.curve_name"), get("train.curve_runs"), lang]
    seen = gr.State("")
    names = ("progress_bar", "status_box", "log_box", "metrics_box", "swanlab_link", "loss_viewer", "curve_name")
    outputs = [*(get(f"train.{name}") for name in names), seen]
    panel = _Panel(engine)
    for element in watched:
        on(element.change, panel.show_anew, watched, outputs)
    on(gr.Timer(POLL_SECONDS).tick, panel.show, [*watched, seen], outputs, trigger_mode="once")
    on(demo.load, panel.take_up, None, [shown, get("train.resume_btn")])
    on(gr.Timer(SEARCH_SECONDS).tick, panel.look_out, [shown], [shown])
    on(shown.focus, panel.offer, None, [shown, get("train.curve_runs")])
    on(get("train.curve_runs").focus, panel.offer, None, [shown, get("train.curve_runs")])
    plot = get("train.loss_viewer")
    on(plot.select, panel.zoom, None, [plot])
    on(plot.double_click, panel.unzoom, None, [plot])


def find_shown(engine: Engine, run_id: str | None) -> Path | None:
    """Return the folder of the run that a page shows."""
    return run_view.find_shown(engine.places.saves, run_id)


def run_choices(engine: Engine) -> list[str]:
    """Return all runs, newest first."""
    return [row.run_id for row in jobs.list_runs(engine.places.saves)]


class _Panel:
    """What the panel's events do; it holds nothing between two of them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def take_up(self) -> Any:
        """Show a run on a page that was just opened, and tell (as `train.resume_btn`) whether one is going on."""
        return self.choose(), bool(jobs.list_runs(self.engine.places.saves, states=("running",)))

    def choose(self) -> Any:
        """Show the run that is going on, else the newest one."""
        rows = jobs.list_runs(self.engine.places.saves)
        running = next((row for row in rows if row.state == "running"), rows[0] if rows else None)
        return gr.update(choices=[row.run_id for row in rows], value=running.run_id if running else None)

    def look_out(self, run_id: str | None) -> Any:
        """Turn to a run that somebody else started, when the one shown is over."""
        folder = find_shown(self.engine, run_id)
        if folder is not None and not jobs.read_status(folder, with_curves=False).is_over:
            return gr.skip()
        return self.choose() if jobs.list_runs(self.engine.places.saves, states=("running",)) else gr.skip()

    def offer(self) -> Any:
        choices = run_choices(self.engine)
        return gr.update(choices=choices), gr.update(choices=choices)

    def show_anew(self, run_id: str | None, curve: str, others: list[str], lang: str) -> Any:
        return self.show(run_id, curve, others, lang, "")

    def show(self, run_id: str | None, curve: str, others: list[str], lang: str, seen: str) -> Any:
        """Return the panel, and leave every part alone that has not changed."""
        language = as_language(lang)
        folder = find_shown(self.engine, run_id)
        if folder is None or run_id is None:
            view = empty_view(language)
            return (*map(shown, (*view, "")), gr.update(visible=False), gr.skip(), "")
        status = jobs.read_status(folder, with_curves=False)
        view = (*show_run(status, language), swanlab_link(status, language))
        stamp = f"{status.progress.step} {status.state} {run_id} {curve} {others} {lang}"
        if stamp == seen and seen:
            return (*map(shown, view), gr.skip(), gr.skip(), seen)
        status = jobs.read_status(folder)
        runs = {run_id: status} | self._others(others, run_id)
        points = curve_points(runs, curve)
        plot = gr.update(value=points, visible=not points.empty, y_title=curve)
        names = gr.update(choices=curve_names(status.curves))
        return (*map(shown, view), plot, names, stamp)

    def zoom(self, event: gr.SelectData) -> Any:
        return gr.update(x_lim=list(event.index))

    def unzoom(self) -> Any:
        return gr.update(x_lim=None)

    def _others(self, run_ids: list[str] | None, shown: str) -> dict[str, "jobs.Status"]:
        found: dict[str, jobs.Status] = {}
        for run_id in (run_ids or [])[:MAX_COMPARED]:
            folder = find_shown(self.engine, run_id)
            if folder is not None and run_id != shown:
                found[run_id] = jobs.read_status(folder)
        return found
