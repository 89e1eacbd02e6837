"""The chat box: what is said, the controls of generation, and a second column for the base model."""

from typing import TYPE_CHECKING, Any

import gradio as gr

from ..chat.handlers import ChatHandlers
from ..engine import Engine
from ..form import make_groups
from ..wording import DEFAULT_LANGUAGE, words_of


if TYPE_CHECKING:
    from gradio.components import Component

HEIGHT = "max(320px, calc(100vh - 480px))"


def create_chat_box(engine: Engine, visible: bool = False) -> "tuple[Component, Component, dict[str, Any]]":
    """Make the chat box where the caller stands; return (the chat, its state, the elements by name)."""
    made: dict[str, Any] = {}
    reads = engine.chatter.slot.voice().reads if engine.chatter.slot.is_loaded else frozenset()
    with gr.Column(visible=visible, elem_classes="chat-box") as made["chat_box"], gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            _make_chats(made)
            _make_input(made)
            _make_media(made, reads)
        with gr.Column(scale=1, min_width=300):
            _make_controls(made)
    messages = gr.State(())
    ChatHandlers(engine, {**made, "messages": messages}).connect()
    return made["chatbot"], messages, made


def _words(name: str, *attributes: str) -> dict[str, Any]:
    words = words_of(f"infer.{name}", DEFAULT_LANGUAGE)
    return {key: words[key] for key in attributes or ("label", "info", "placeholder", "value") if key in words}


def _make_chats(made: dict[str, Any]) -> None:
    looks: dict[str, Any] = {
        "height": HEIGHT,
        "buttons": ["copy", "copy_all"],
        "allow_tags": False,
        "feedback_options": None,
        "group_consecutive_messages": False,
    }
    with gr.Row():
        made["chatbot"] = gr.Chatbot(elem_id="infer-chatbot", editable="user", **looks, **_words("chatbot"))
        made["chatbot_base"] = gr.Chatbot(
            elem_id="infer-chatbot_base", visible=False, **looks, **_words("chatbot_base")
        )


def _make_input(made: dict[str, Any]) -> None:
    with gr.Row(equal_height=True):
        made["query"] = gr.Textbox(
            lines=1, max_lines=12, scale=6, elem_id="infer-query", autofocus=False, **_words("query")
        )
        names = words_of("infer.role", DEFAULT_LANGUAGE)["choices"]
        choices = [(names[word], word) for word in ("user", "observation")]
        made["role"] = gr.Dropdown(
            choices, value="user", scale=1, min_width=130, elem_id="infer-role", **_words("role", "label")
        )
    with gr.Row():
        made["submit_btn"] = gr.Button(variant="primary", elem_id="infer-submit_btn", **_words("submit_btn"))
        made["stop_btn"] = gr.Button(variant="stop", visible=False, elem_id="infer-stop_btn", **_words("stop_btn"))
        made["retry_btn"] = gr.Button(elem_id="infer-retry_btn", **_words("retry_btn"))
        made["clear_btn"] = gr.Button(elem_id="infer-clear_btn", **_words("clear_btn"))
    with gr.Accordion(open=False, elem_classes="fold", **_words("tools_tab")) as made["tools_tab"]:
        made["system"] = gr.Textbox(lines=2, elem_id="infer-system", **_words("system"))
        made["tools"] = gr.Textbox(lines=4, elem_id="infer-tools", **_words("tools"))
        made["tools_problem"] = gr.Markdown(visible=False, elem_classes="problem", elem_id="infer-tools_problem")


def _make_media(made: dict[str, Any], reads: frozenset[str]) -> None:
    """Make the boxes of what a model may take beside text; only those that the loaded model takes are shown."""
    with (
        gr.Accordion(
            open=True, visible=bool(reads), elem_id="infer-mm_box", elem_classes="fold", **_words("mm_box")
        ) as made["mm_box"],
        gr.Row(),
    ):
        made["image"] = gr.Image(
            type="filepath", visible="image" in reads, elem_id="infer-image", height=220, **_words("image")
        )
        made["video"] = gr.Video(visible="video" in reads, elem_id="infer-video", height=220, **_words("video"))
        made["audio"] = gr.Audio(type="filepath", visible="audio" in reads, elem_id="infer-audio", **_words("audio"))


def _make_controls(made: dict[str, Any]) -> None:
    made["seed"] = gr.Number(-1, precision=0, render=False, elem_id="infer-seed", **_words("seed"))
    made["escape_html"] = gr.Checkbox(True, render=False, elem_id="infer-escape_html", **_words("escape_html"))
    make_groups("infer", made, ["settings"])
