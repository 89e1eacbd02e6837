"""Loading and unloading at the Chat tab: what the form says, checked as for any other command."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any, NamedTuple

import gradio as gr

from ...extras.env import read_env
from ...extras.errors import UserError
from ..events import QUIET, this_page
from ..jobs.checking import JobError, find_problems
from ..tab_form import TabForm
from ..wording import page_words
from .desk import ChatDesk
from .handlers import Updates
from .loaded import ModelSlot


LOAD_ERRORS = (UserError, OSError, ValueError, RuntimeError, ImportError)
"""What libraries raise when a model is not there, does not fit into memory, or is broken."""


MEDIA = ("image", "video", "audio")
CHECKPOINT = "top.checkpoint_path"


class Wanted(NamedTuple):
    """What is to be loaded."""

    arguments: dict[str, Any]
    base: dict[str, Any] | None
    """The untouched model, when the two are to be compared."""


class LoadHandlers:
    """Connects the two buttons above the chat."""

    def __init__(self, engine: Any, elements: Mapping[str, Any]) -> None:
        self.engine = engine
        self.elements = elements
        self.desk: ChatDesk = engine.chatter
        self.form = TabForm(engine, "infer", elements, "chat")
        self.lang = engine.manager.get_elem_by_id("top.lang")

    def connect(self) -> None:
        """Tie the handlers to their events."""
        made = self.elements
        inputs = {*self.form.inputs, made["compare"], self.lang}
        names = ("info_box", "chat_box", "chatbot_base", "messages", "chatbot", "mm_box", *MEDIA)
        outputs = [made[name] for name in names]
        if not self.engine.demo_mode:
            made["load_btn"].click(self.load, inputs=inputs, outputs=outputs, **QUIET)
            made["unload_btn"].click(self.unload, inputs=[self.lang], outputs=outputs, **QUIET)
        this_page().load(self.state, inputs=[self.lang], outputs=outputs, **QUIET)
        self.lang.change(self.state, inputs=[self.lang], outputs=outputs, **QUIET)

    async def load(self, values: dict[Any, Any]) -> AsyncGenerator[Updates, None]:
        """Load what the form says."""
        labels = page_words("infer", str(values.get(self.lang)))
        try:
            wanted = self._read(values)
            name = shown_name(wanted.arguments)
            yield {self.elements["info_box"]: labels["loading"].format(name=name)}
            await self.desk.load(wanted.arguments, wanted.base)
        except LOAD_ERRORS as error:
            yield {self.elements["info_box"]: labels["failed"].format(problem=error)}
            return
        yield self.state(str(values.get(self.lang))) | {self.elements["messages"]: (), self.elements["chatbot"]: []}

    async def unload(self, lang: str) -> AsyncGenerator[Updates, None]:
        """Unload the model."""
        labels = page_words("infer", lang)
        yield {self.elements["info_box"]: labels["unloading"]}
        was_loaded = await self.desk.unload()
        yield {
            self.elements["info_box"]: labels["unloaded" if was_loaded else "no_model"],
            self.elements["chat_box"]: gr.update(visible=False),
        }

    def state(self, lang: str) -> Updates:
        """Show whether a model is loaded, whoever loaded it."""
        labels = page_words("infer", lang)
        slot = self.desk.slot
        words = "no_model" if not slot.is_loaded else "loaded_two" if len(slot.voices) > 1 else "loaded"
        return {
            self.elements["info_box"]: labels[words].format(name=shown_name(slot.arguments)),
            self.elements["chat_box"]: gr.update(visible=slot.is_loaded),
            self.elements["chatbot_base"]: gr.update(visible=len(slot.voices) > 1),
            **shown_media(self.elements, slot),
        }

    def _read(self, values: Mapping[Any, Any]) -> Wanted:
        """Return what the form says, or everything that is wrong with it."""
        base = self.form.config(values, without=CHECKPOINT) if values.get(self.elements["compare"]) else None
        wanted = Wanted(self.form.config(values), base)
        problems = [
            problem
            for one in (wanted.arguments, wanted.base)
            if one is not None
            for problem in find_problems(one, "chat", self.engine.places)
        ]
        if problems:
            raise JobError(problems)
        return wanted


def shown_media(elements: Mapping[str, Any], slot: ModelSlot) -> Updates:
    """Show the boxes of what the loaded model takes beside text."""
    reads = slot.voice().reads if slot.is_loaded else frozenset()
    boxes: Updates = {elements[name]: gr.update(visible=name in reads) for name in MEDIA}
    return {elements["mm_box"]: gr.update(visible=bool(reads)), **boxes}


def load_demo(desk: ChatDesk) -> None:
    """Load the model of a demonstration, which its visitors cannot change."""
    env = read_env()
    if env.demo_model:
        desk.slot.load(
            {"model_name_or_path": env.demo_model, "template": env.demo_template, "infer_backend": env.demo_backend}
        )


def shown_name(arguments: Mapping[str, Any]) -> str:
    """Say in one line what is loaded."""
    model = str(arguments.get("model_name_or_path", ""))
    adapters = arguments.get("adapter_name_or_path") or ()
    words = [adapters] if isinstance(adapters, str) else [str(item) for item in adapters]
    return " + ".join([model, *words])
