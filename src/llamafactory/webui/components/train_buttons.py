"""The buttons of the Train tab: preview, estimate, save, load, start, queue, abort."""

from typing import TYPE_CHECKING, Any

import gradio as gr

from ...extras.errors import UserError
from .. import jobs
from ..arguments import MODEL_NAME
from ..engine import Engine, as_language
from ..events import on, shown
from ..markup import notice
from ..offers import run_names, saved_arguments
from ..plan_view import show_plan
from ..train_actions import Checked, Form, loaded_notice, problem_notice
from ..wording import say
from .run_panel import find_shown, run_choices
from .train_form import form_elements, standing_elements


if TYPE_CHECKING:
    from gradio.blocks import Block

Update = Any
BOX, PLAN, SHOWN = "train.output_box", "train.plan_box", "train.current_run"
BOXES = (BOX, PLAN)


def connect_buttons(engine: Engine) -> None:
    """Connect the buttons; what they do stands in train_actions.py."""
    buttons = _Buttons(engine)
    get = engine.manager.get_elem_by_id
    fields, standing = form_elements(engine), standing_elements(engine)
    box = get(BOX)
    preview = [get(f"train.{name}") for name in ("preview", "preview_yaml", "preview_command")]
    on(get("train.cmd_preview_btn").click, buttons.preview, fields, [box, *preview, *standing])
    on(get("train.plan_btn").click, buttons.plan, fields, [box, get(PLAN), *standing])
    if engine.demo_mode:
        return
    config_path = get("train.config_path")
    on(get("train.arg_save_btn").click, buttons.save, fields, [box, config_path])
    everything = [box, *dict.fromkeys([*fields, *standing])]
    on(get("train.arg_load_btn").click, buttons.load, fields, everything)
    started = [box, get(SHOWN), get("train.output_dir"), *standing]
    on(get("train.start_btn").click, buttons.start, fields, started)
    on(get("train.queue_btn").click, buttons.queue, fields, started)
    on(get("train.stop_btn").click, buttons.abort, [get(SHOWN), get("top.lang")], [box])
    on(get("train.output_dir").input, buttons.pick_folder, fields, everything)


class _Buttons:
    """One method for each button: it takes what the visitor's page holds and returns updates for that page."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.form = Form(engine.fields, engine.places)

    def preview(self, data: dict[Any, Any]) -> Update:
        values, language = self._read(data)
        checked = self.form.check(values, language)
        updates = self._told(checked, values, language)
        if checked.config:
            text, command = self.form.preview(checked.config, values)
            updates |= self._set({"train.preview_yaml": text, "train.preview_command": command})
        updates[self._get("train.preview")] = gr.update(visible=bool(checked.config))
        return updates

    def plan(self, data: dict[Any, Any]) -> Update:
        values, language = self._read(data)
        checked = self.form.check(values, language)
        updates = self._told(checked, values, language)
        if not checked.problems:
            try:
                text = show_plan(self.form.plan(checked.config, values, language), language)
            except UserError as error:
                text = notice(str(error), "problem")
            updates |= self._set({PLAN: text})
        return updates

    def save(self, data: dict[Any, Any]) -> Update:
        values, language = self._read(data)
        name = self.form.save(values, str(values.get("train.config_path") or "arguments.yaml"))
        updates = self._set({BOX: notice(say("info_config_saved", language, name=name), "good")})
        choices = saved_arguments(self.engine.places)
        return updates | {self._get("train.config_path"): gr.update(choices=choices, value=name)}

    def load(self, data: dict[Any, Any]) -> Update:
        values, language = self._read(data)
        name = str(values.get("train.config_path") or "")
        loaded = self.form.load(name, language, self._others())
        return self._filled(values, loaded.values, language) | self._set({BOX: loaded_notice(loaded, name, language)})

    def pick_folder(self, data: dict[Any, Any]) -> Update:
        """Show what a run was told when its folder is picked."""
        values, language = self._read(data)
        name = str(values.get("train.output_dir") or "")
        kept = self.form.kept(values, name) if name else None
        if kept is None:
            return {self._get(BOX): gr.skip()}
        text = notice(say("warn_output_dir_exists", language, name=name), "warning")
        return self._filled(values, kept.values, language) | self._set({BOX: text})

    def start(self, data: dict[Any, Any]) -> Update:
        return self._start(data, queued=False)

    def queue(self, data: dict[Any, Any]) -> Update:
        return self._start(data, queued=True)

    def abort(self, run_id: str | None, lang: str) -> Update:
        language = as_language(lang)
        run_dir = find_shown(self.engine, run_id)
        if run_dir is None:
            return shown(notice(say("err_no_run", language), "warning"))
        message = "info_ending" if jobs.press_abort(run_dir) else "info_abort_again"
        return shown(notice(say(message, language), "warning"))

    def _start(self, data: dict[Any, Any], *, queued: bool) -> Update:
        values, language = self._read(data)
        checked = self.form.check(values, language)
        if checked.problems:
            return self._told(checked, values, language)
        try:
            run = self.form.start(values, checked.config, queued=queued)
        except jobs.JobError as error:
            found = [(problem.keys, problem.message) for problem in error.problems]
            return self._told(Checked(checked.config, found), values, language)
        updates = self._told(checked, values, language)
        updates |= self._set({BOX: notice(say("info_queued" if queued else "info_started", language), "good")})
        folders = run_names(self.engine.places, values[MODEL_NAME], values["top.finetuning_type"])
        updates[self._get("train.output_dir")] = gr.update(choices=folders)
        return updates | {self._get(SHOWN): gr.update(choices=run_choices(self.engine), value=run.run_id)}

    def _read(self, data: dict[Any, Any]) -> tuple[dict[str, Any], str]:
        values = self.engine.values(data)
        return values, as_language(values.get("top.lang"))

    def _told(self, checked: Checked, values: dict[str, Any], language: str) -> "dict[Block, Any]":
        updates: dict[Block, Any] = dict(self.engine.stand(values, language, checked.problems))
        return updates | self._set({BOX: problem_notice(checked.problems, language)})

    def _filled(self, values: dict[str, Any], new: dict[str, Any], language: str) -> "dict[Block, Any]":
        """Put values into the form and grey out what does not go with them."""
        updates: dict[Block, Any] = dict(self.engine.stand({**values, **new}, language))
        for key, update in self.engine.fill(new).items():
            updates[key] = {**updates.get(key, {}), **update}
        return updates

    def _others(self) -> tuple[str, ...]:
        return tuple(self.engine.manager.get_id_by_elem(element) for element in form_elements(self.engine))

    def _get(self, element_id: str) -> "Block":
        return self.engine.manager.get_elem_by_id(element_id)

    def _set(self, values: dict[str, Any]) -> "dict[Block, Any]":
        return {self._get(key): shown(value) if key in BOXES else value for key, value in values.items()}
