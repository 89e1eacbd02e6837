"""The Runs page: all runs with their state; several compared, resumed, queued, stopped, copied or deleted."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import gradio as gr

from .. import jobs
from ..arguments import EXTRA, MODEL_NAME, from_config
from ..engine import Engine
from ..events import QUIET
from ..markup import notice
from ..run_view import curve_points
from ..runs_page import (
    STATES,
    chosen_runs,
    delete_runs,
    list_rows,
    one_run,
    resume_runs,
    show_runs,
    stop_runs,
    toggled,
)
from ..wording import DEFAULT_LANGUAGE, page_words, words_of


if TYPE_CHECKING:
    from gradio.components import Component

Updates: TypeAlias = dict[Any, Any]
REFRESH_SECONDS = 3
NUM_PLOTS = 3
PLOTTED = ("loss", "eval_loss", "reward", "rewards/margins", "accuracy", "lr", "predict_loss")
ACTIONS = ("compare_btn", "resume_btn", "queue_btn", "stop_btn", "clone_btn", "delete_btn")


def create_runs_tab(engine: Engine) -> "dict[str, Component]":
    """Make the elements of the Runs page."""
    made = _make_list(engine) | _make_actions() | _make_view()
    RunsHandlers(engine, made).connect()
    return {name: item for name, item in made.items() if not name.startswith("_")}


def _words(name: str) -> dict[str, Any]:
    words = words_of(f"runs.{name}", DEFAULT_LANGUAGE)
    return {key: words[key] for key in ("label", "info", "placeholder", "value") if key in words}


def _heads(language: str) -> list[str]:
    words = page_words("runs", language)
    return [words[name] for name in ("name", "state", "what", "progress", "loss", "changed")]


def _make_list(engine: Engine) -> dict[str, Any]:
    made: dict[str, Any] = {}
    names = words_of("runs.states", DEFAULT_LANGUAGE)["choices"]
    with gr.Row(elem_classes="fields"):
        made["filter_box"] = gr.Textbox(scale=2, elem_id="runs-filter_box", **_words("filter_box"))
        made["states"] = gr.CheckboxGroup(
            [(names[state], state) for state in STATES], scale=3, elem_id="runs-states", **_words("states")
        )
    ids, rows = list_rows(engine.places.saves, "", (), DEFAULT_LANGUAGE)
    made["run_table"] = gr.Dataframe(
        {"headers": _heads(DEFAULT_LANGUAGE), "data": rows},
        datatype="str",
        interactive=False,
        max_height=360,
        column_widths=["420px", "140px", "170px", "130px", "130px", "220px"],
        elem_id="runs-run_table",
        **_words("run_table"),
    )
    made["chosen"] = gr.Dropdown(ids, value=[], multiselect=True, elem_id="runs-chosen", **_words("chosen"))
    made["_listed"] = gr.State(ids)
    made["_timer"] = gr.Timer(REFRESH_SECONDS)
    return made


def _make_actions() -> dict[str, Any]:
    made: dict[str, Any] = {}
    with gr.Row(elem_classes="actions"):
        for name in ACTIONS:
            variant: Any = {"compare_btn": "primary", "delete_btn": "stop"}.get(name, "secondary")
            made[name] = gr.Button(variant=variant, min_width=120, elem_id=f"runs-{name}", **_words(name))
    made["message"] = gr.HTML(elem_id="runs-message", elem_classes="messages")
    with gr.Row(visible=False) as made["_confirm"]:
        made["confirm_btn"] = gr.Button(variant="stop", elem_id="runs-confirm_btn", **_words("confirm_btn"))
        made["keep_btn"] = gr.Button(elem_id="runs-keep_btn", **_words("keep_btn"))
    return made


def _make_view() -> dict[str, Any]:
    made: dict[str, Any] = {}
    with gr.Row():
        for place in range(NUM_PLOTS):
            made[f"_plot_{place}"] = gr.LinePlot(
                x="step",
                y="value",
                color="run",
                visible=False,
                height=280,
                min_width=320,
                elem_id=f"runs-plot_{place}",
            )
    made["comparison"] = gr.HTML(elem_id="runs-comparison", elem_classes="comparison")
    return made


class RunsHandlers:
    """Connects the elements of the page with what is done to runs."""

    def __init__(self, engine: Engine, made: dict[str, Any]) -> None:
        self.engine = engine
        self.made = made
        self.root = engine.places.saves
        self.lang: Any = engine.manager.get_elem_by_id("top.lang")

    def connect(self) -> None:
        """Tie every handler to its event."""
        made, lang = self.made, self.lang
        listing = [made["filter_box"], made["states"], made["_listed"], made["chosen"], lang]
        listed = [made["run_table"], made["_listed"], made["chosen"]]
        gr.on(
            [made["_timer"].tick, made["filter_box"].change, made["states"].change, lang.change],
            self.refresh,
            listing,
            listed,
            **QUIET,
        )
        made["run_table"].select(self.choose, [made["_listed"], made["chosen"]], [made["chosen"]], **QUIET)
        shown = [made["message"], made["comparison"], *(made[f"_plot_{place}"] for place in range(NUM_PLOTS))]
        chosen = [made["chosen"], lang]
        made["compare_btn"].click(self.show, chosen, shown, **QUIET)
        for name, action in (
            ("resume_btn", self.resume),
            ("queue_btn", self.queue),
            ("stop_btn", self.stop),
        ):
            made[name].click(action, chosen, [made["message"]], **QUIET)
        self.form = [self.engine.manager.get_elem_by_id(key) for key in (*self.engine.fields, MODEL_NAME, EXTRA)]
        self.tabs = self.engine.manager.get_elem_by_id("tabs.all")
        made["clone_btn"].click(self.clone, chosen, [made["message"], self.tabs, *self.form], **QUIET)
        made["delete_btn"].click(self.ask_delete, chosen, [made["message"], made["_confirm"]], **QUIET)
        made["keep_btn"].click(self.keep, None, [made["message"], made["_confirm"]], **QUIET)
        made["confirm_btn"].click(self.delete, chosen, [made["message"], made["_confirm"], made["chosen"]], **QUIET)
        for place in range(NUM_PLOTS):
            plot = made[f"_plot_{place}"]
            plot.select(zoom_in, None, [plot], **QUIET)
            plot.double_click(zoom_out, None, [plot], **QUIET)

    def refresh(self, text: str, states: list[str], before: list[str], chosen: list[str], lang: str) -> Updates:
        """List the runs again; the chosen ones stay chosen as long as they exist."""
        ids, rows = list_rows(self.root, text, states, lang)
        updates: Updates = {self.made["run_table"]: gr.update(value={"headers": _heads(lang), "data": rows})}
        if ids != before:
            every = [row.run_id for row in jobs.list_runs(self.root)]
            kept = [item for item in chosen or () if item in every]
            updates |= {self.made["_listed"]: ids, self.made["chosen"]: gr.update(choices=every, value=kept)}
        return updates

    def choose(self, listed: list[str], chosen: list[str], data: gr.SelectData) -> Any:
        """Choose the run that was clicked, or leave it out again."""
        place = int(data.index[0])
        return toggled(chosen or [], listed[place]) if 0 <= place < len(listed) else gr.skip()

    def show(self, chosen: list[str], lang: str) -> Updates:
        """Show the chosen runs with their curves."""
        try:
            runs = chosen_runs(self.root, chosen)
            compared = show_runs(self.root, runs, lang)
            statuses = {run: jobs.read_status(jobs.find_run(self.root, run)) for run in runs}
        except ValueError as error:
            return {self.made["message"]: notice(str(error), "problem")}
        names = [name for name in PLOTTED if name in compared.curves][:NUM_PLOTS]
        updates: Updates = {self.made["message"]: "", self.made["comparison"]: compared.html}
        for place in range(NUM_PLOTS):
            name = names[place] if place < len(names) else ""
            updates[self.made[f"_plot_{place}"]] = gr.update(
                visible=bool(name), value=curve_points(statuses, name) if name else None, title=name, x_lim=None
            )
        return updates

    def resume(self, chosen: list[str], lang: str) -> str:
        """Let the chosen runs go on."""
        return self._do(chosen, lang, "resumed", lambda runs: resume_runs(self.engine.places, runs, queued=False))

    def queue(self, chosen: list[str], lang: str) -> str:
        """Let the chosen runs go on one after the other."""
        return self._do(chosen, lang, "queued", lambda runs: resume_runs(self.engine.places, runs, queued=True))

    def stop(self, chosen: list[str], lang: str) -> str:
        """Stop the chosen runs."""
        return self._do(chosen, lang, "stopping", lambda runs: stop_runs(self.engine.places, runs))

    def clone(self, chosen: list[str], lang: str) -> Updates:
        """Put what a run was told into the form of the Train tab, and turn to it."""
        try:
            run = one_run(chosen_runs(self.root, chosen), lang)
            loaded = from_config(self.engine.fields, jobs.clone_run(self.root, run).config)
        except ValueError as error:
            return {self.made["message"]: notice(str(error), "problem")}
        filled = {item: update for item, update in self.engine.fill(loaded.values).items() if item in self.form}
        text = page_words("runs", lang)["copied"].format(names=run)
        return {self.made["message"]: notice(text, "good"), self.tabs: gr.update(selected="train"), **filled}

    def ask_delete(self, chosen: list[str], lang: str) -> Updates:
        """Ask once more before anything is deleted."""
        words = page_words("runs", lang)
        try:
            runs = chosen_runs(self.root, chosen)
        except ValueError as error:
            return {self.made["message"]: notice(str(error), "problem")}
        if not runs:
            return {self.made["message"]: notice(words["none_chosen"])}
        question = words["ask_delete"].format(count=len(runs), names=", ".join(runs))
        return {self.made["message"]: notice(question, "warning"), self.made["_confirm"]: gr.update(visible=True)}

    def keep(self) -> Updates:
        """Delete nothing."""
        return {self.made["message"]: "", self.made["_confirm"]: gr.update(visible=False)}

    def delete(self, chosen: list[str], lang: str) -> Updates:
        """Delete the chosen runs."""
        message = self._do(chosen, lang, "deleted", lambda runs: delete_runs(self.engine.places, runs))
        every = [row.run_id for row in jobs.list_runs(self.root)]
        kept = [run for run in chosen or () if run in every]
        return {
            self.made["message"]: message,
            self.made["_confirm"]: gr.update(visible=False),
            self.made["chosen"]: gr.update(choices=every, value=kept),
        }

    def _do(self, chosen: list[str], lang: str, done: str, action: Callable[[list[str]], list[str]]) -> str:
        """Do something to the chosen runs and say what was done, or what is wrong."""
        words = page_words("runs", lang)
        try:
            runs = chosen_runs(self.root, chosen)
            if not runs:
                return notice(words["none_chosen"])
            names = action(runs)
        except ValueError as error:
            return notice(str(error), "problem")
        return notice(words[done].format(names=", ".join(names)), "good")


def zoom_in(data: gr.SelectData) -> Any:
    """Show the stretch of steps that was marked in a plot."""
    index = data.index
    return gr.update(x_lim=[index[0], index[1]]) if isinstance(index, list | tuple) and len(index) == 2 else gr.skip()


def zoom_out() -> Any:
    """Show all steps again."""
    return gr.update(x_lim=None)
