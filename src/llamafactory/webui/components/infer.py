"""The Chat tab: load a model, talk with it, compare it with its base."""

from typing import TYPE_CHECKING, Any

import gradio as gr

from ..chat.desk import ChatDesk
from ..chat.loading import LoadHandlers, load_demo
from ..engine import Engine
from ..form import make_groups
from ..wording import DEFAULT_LANGUAGE, words_of
from .chatbot import create_chat_box


if TYPE_CHECKING:
    from gradio.components import Component


def create_infer_tab(engine: Engine) -> "dict[str, Component]":
    """Make the elements of the Chat tab."""
    engine.chatter = engine.chatter or ChatDesk()
    if engine.demo_mode:
        load_demo(engine.chatter)
    made: dict[str, Any] = {
        name: words_of(f"infer.{name}", DEFAULT_LANGUAGE)
        for name in ("extra_args", "compare", "load_btn", "unload_btn", "info_box")
    }
    made["extra_args"] = gr.Textbox("{}", lines=1, render=False, elem_id="infer-extra_args", **made["extra_args"])
    with gr.Group(visible=not engine.demo_mode):
        make_groups("infer", made, ["engine"])
        made["compare"] = gr.Checkbox(False, elem_id="infer-compare", **made["compare"])
    with gr.Row(visible=not engine.demo_mode):
        made["load_btn"] = gr.Button(variant="primary", elem_id="infer-load_btn", **made["load_btn"])
        made["unload_btn"] = gr.Button(elem_id="infer-unload_btn", **made["unload_btn"])
    made["info_box"] = gr.Textbox(
        words_of("infer.no_model", DEFAULT_LANGUAGE)["value"],
        interactive=False,
        elem_id="infer-info_box",
        lines=1,
        label=made["info_box"]["label"],
    )
    _, messages, elements = create_chat_box(engine, visible=False)
    made |= elements
    LoadHandlers(engine, {**made, "messages": messages}).connect()
    return {name: element for name, element in made.items() if name != "chat_box"}
