"""What happens in the form itself: what can be used changes with what is chosen."""

from typing import Any

import gradio as gr

from ..arguments import DEVICES, MODEL_NAME
from ..engine import FORM_TABS, Engine, as_language
from ..events import QUIET, on
from ..job_pages import time_name
from ..layout import folds_of
from ..offers import dataset_names, run_names
from ..train_actions import add_key, kept_values


FORM_KEY = "llamaboard-form"
"""Where the visitor's own browser keeps the form."""
DECIDES = ("switch", "choice", "open", "names")
"""Widgets whose value can change what else may be used."""
IN_ORDER: dict[str, Any] = {"concurrency_id": "words", "concurrency_limit": 1}
"""What writes words beside fields is done in the order it was asked for, so that the last language stays."""


def form_elements(engine: Engine) -> "set[Any]":
    """Return the elements that hold values of the form."""
    from gradio.components import Component

    others = ("train.extra_args", "train.output_dir", "train.config_path", DEVICES)
    others += ("top.lang", MODEL_NAME, "top.hub_name")
    found = {engine.manager.get_elem_by_id(key) for key in (*engine.fields, *others)}
    return {element for element in found if isinstance(element, Component)}


def standing_elements(engine: Engine) -> "list[Any]":
    """Return the elements that are greyed out, hidden or annotated: fields and the folds around them."""
    return [engine.manager.get_elem_by_id(key) for key in (*engine.fields, *folds_of(FORM_TABS))]


def connect_reload(engine: Engine, demo: gr.Blocks) -> None:
    """Bring back the form that this browser showed last, and grey out what does not go with it."""
    inputs, standing = form_elements(engine), standing_elements(engine)
    opened, folder = (engine.manager.get_elem_by_id(f"train.{name}") for name in ("current_time", "output_dir"))
    ids = {engine.manager.get_id_by_elem(element) for element in inputs} - {"top.lang"}

    def bring_back(data: dict[Any, Any]) -> Any:
        remembered = data.pop(engine.kept_form)
        values = engine.values(data)
        new = {key: value for key, value in remembered.items() if key in ids} if isinstance(remembered, dict) else {}
        language = as_language(values.get("top.lang"))
        updates: dict[Any, Any] = dict(engine.stand({**values, **new}, language)) | {opened: time_name()}
        for element, update in engine.fill(new).items():
            updates[element] = {**updates.get(element, {}), **update}
        shown = {**values, **new}
        names = run_names(engine.places, shown[MODEL_NAME], shown["top.finetuning_type"])
        updates[folder] = {**updates.get(folder, {}), **gr.update(choices=names)}
        return updates

    outputs = list(dict.fromkeys([*inputs, *standing, opened]))
    on(demo.load, bring_back, {*inputs, engine.kept_form}, outputs, **IN_ORDER)


def connect_language(engine: Engine) -> None:
    """Change every word at once, those among them that tell why a field cannot be used."""

    def change(data: dict[Any, Any]) -> Any:
        values = engine.values(data)
        language = as_language(values.get("top.lang"))
        updates: dict[Any, Any] = dict(engine.change_lang(language))
        for element, look in engine.stand(values, language).items():
            updates[element] = {**updates.get(element, {}), **look}
        return updates

    lang = engine.manager.get_elem_by_id("top.lang")
    on(lang.change, change, form_elements(engine), engine.manager.get_elem_list(), **IN_ORDER)


def connect_form(engine: Engine) -> None:
    """Connect the fields with each other."""
    manager = engine.manager
    get = manager.get_elem_by_id
    inputs = form_elements(engine)

    def stand(data: dict[Any, Any]) -> Any:
        values = engine.values(data)
        return engine.stand(values, as_language(values.get("top.lang")))

    kept = gr.BrowserState({}, storage_key=FORM_KEY, secret=FORM_KEY)

    def keep(data: dict[Any, Any]) -> Any:
        """Let the visitor's own browser keep the form, so that a reload brings it back."""
        return kept_values(engine.fields, engine.values(data))

    deciding = [get(key).change for key, field in engine.fields.items() if field.widget in DECIDES]
    deciding += [get("train.val_size").release]
    gr.on(deciding, stand, inputs, standing_elements(engine), trigger_mode="always_last", **QUIET, **IN_ORDER)

    texts = [
        getattr(element, "release", None) or getattr(element, "blur", None) or element.change for element in inputs
    ]
    gr.on(texts, keep, inputs, [kept], trigger_mode="always_last", **QUIET)
    engine.kept_form = kept

    def offer_datasets(folder: str, stage: str) -> Any:
        names = dataset_names(engine.places, folder, stage)
        return gr.update(choices=names), gr.update(choices=names)

    def change_stage(folder: str, stage: str) -> Any:
        names = dataset_names(engine.places, folder, stage)
        return gr.update(choices=names, value=[]), gr.update(choices=names, value=[])

    datasets = [get("train.dataset"), get("train.eval_dataset")]
    where = [get("train.dataset_dir"), get("train.training_stage")]
    on(get("train.training_stage").input, change_stage, where, datasets)
    on(get("train.dataset_dir").blur, offer_datasets, where, datasets)
    on(get("train.dataset").focus, offer_datasets, where, datasets)

    def offer_folders(model: str, method: str) -> Any:
        return gr.update(choices=run_names(engine.places, model, method))

    model = [get(MODEL_NAME), get("top.finetuning_type")]
    for element in model:  # not when it gets the focus: a list that comes late would open again after Tab
        on(element.change, offer_folders, model, [get("train.output_dir")])

    def take_key(key: str | None, text: str) -> Any:
        return (add_key(text, key), None) if key else (gr.skip(), None)

    more = [get("train.more_key"), get("train.extra_args")]
    on(more[0].input, take_key, more, [more[1], more[0]])
