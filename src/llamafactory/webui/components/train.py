"""The Train tab: the form, the buttons below it, and the run that is shown."""

from typing import TYPE_CHECKING, Any

import gradio as gr

from ..engine import Engine
from ..form import folds, make_groups
from ..jobs import list_devices
from ..layout import list_groups
from ..offers import dataset_names, saved_arguments
from ..train_actions import other_keys
from ..wording import DEFAULT_LANGUAGE
from .data import connect_data_panel, create_data_panel
from .run_panel import create_run_panel
from .train_buttons import connect_buttons
from .train_form import connect_form


if TYPE_CHECKING:
    from gradio.blocks import Block

BASICS = "basics"


def create_train_tab(engine: Engine) -> "dict[str, Block]":
    """Make the elements of the Train tab and connect them."""
    words = _Words(engine)
    extra = gr.Textbox(value="{}", lines=2, render=False, elem_id="train-extra_args", **words("extra_args"))
    look_up = gr.Dropdown(
        other_keys(engine.fields), value=None, render=False, elem_id="train-more_key", **words("more_key")
    )
    offered = {"dataset": dataset_names(engine.places, "data", "sft"), "eval_dataset": []}
    made: dict[str, Any] = {"extra_args": extra, "more_key": look_up}
    make_groups("train", made, [BASICS], choices=offered)
    made |= create_data_panel(engine, "train")
    others = [group.name for group in list_groups("train") if group.name != BASICS]
    made |= folds(make_groups("train", made, others, choices=offered))
    made |= _make_buttons(engine, words)
    made |= create_run_panel(engine)
    engine.manager.add_elems("train", made)
    connect_form(engine)
    connect_buttons(engine)
    connect_data_panel(engine, "train", made)
    return made


class _Words:
    """The words of an element as arguments of its maker."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __call__(self, name: str) -> dict[str, Any]:
        return self._engine.words(f"train.{name}", DEFAULT_LANGUAGE)


def _make_buttons(engine: Engine, words: _Words) -> "dict[str, Block]":
    made: dict[str, Block] = {}

    def button(name: str, variant: Any = "secondary") -> None:
        is_active = not engine.demo_mode or name in ("cmd_preview_btn", "plan_btn")
        made[name] = gr.Button(
            variant=variant, interactive=is_active, elem_id=f"train-{name}", min_width=110, **words(name)
        )

    made["current_time"] = gr.Textbox("", visible=False, elem_id="train-current_time", **words("current_time"))
    with gr.Group(elem_classes="open"), gr.Row(elem_classes="fields", equal_height=False):
        made["output_dir"] = gr.Dropdown(
            [], value=None, allow_custom_value=True, elem_id="train-output_dir", **words("output_dir")
        )
        made["config_path"] = gr.Dropdown(
            saved_arguments(engine.places),
            value=None,
            allow_custom_value=True,
            elem_id="train-config_path",
            **words("config_path"),
        )
        found = list_devices()
        made["device_count"] = gr.Textbox(
            str(len(found)), interactive=False, elem_id="train-device_count", **words("device_count")
        )
        made["used_devices"] = gr.Dropdown(
            [(f"{device.index}: {device.name}", device.index) for device in found],
            value=[],
            multiselect=True,
            visible=len(found) > 1,
            elem_id="train-used_devices",
            **words("used_devices"),
        )
    with gr.Row(elem_classes="actions"):
        for name in ("cmd_preview_btn", "plan_btn", "arg_save_btn", "arg_load_btn"):
            button(name)
    with gr.Row(elem_classes="actions"):
        button("start_btn", "primary")
        button("queue_btn")
        button("stop_btn", "stop")
    made["output_box"] = gr.HTML("", elem_id="train-output_box", visible=False)
    with gr.Column(visible=False, elem_id="train-preview") as preview:
        made["preview_yaml"] = gr.Code(
            language="yaml", interactive=False, elem_id="train-preview_yaml", **words("preview_yaml")
        )
        made["preview_command"] = gr.Code(
            language="shell", interactive=False, elem_id="train-preview_command", **words("preview_command")
        )
    made["preview"] = preview
    made["plan_box"] = gr.HTML("", elem_id="train-plan_box", visible=False)
    return made
