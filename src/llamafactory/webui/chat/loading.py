"""Loading and unloading at the Chat tab: what the form says, checked as for any other command."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any, NamedTuple

import gradio as gr

from ...extras.errors import UserError
from ...hparams.methods import tuning_methods
from ..exchange import read_form
from ..jobs.checking import JobError, find_problems
from ..layout import fields_of
from .desk import ChatDesk, read_extra
from .handlers import QUIET, Updates, chat_labels


LOAD_ERRORS = (UserError, OSError, ValueError, RuntimeError, ImportError)
"""What libraries raise when a model is not there, does not fit into memory, or is broken."""
FORM = ("top", "infer")


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
        self.fields = fields_of(FORM)
        self.lang = engine.manager.get_elem_by_id("top.lang")

    def connect(self) -> None:
        """Tie the handlers to their events."""
        made = self.elements
        top = {f"top.{name}": item for name, item in self.engine.manager.get_tab("top").items()}
        own = {f"infer.{name}": item for name, item in made.items()}
        self.sources = {
            element_id: element for element_id, element in (top | own).items() if element_id in self.fields
        }
        inputs = {*self.sources.values(), made["extra_args"], made["compare"], self.lang}
        outputs = [made[name] for name in ("info_box", "chat_box", "chatbot_base", "messages", "chatbot")]
        made["load_btn"].click(self.load, inputs=inputs, outputs=outputs, **QUIET)
        made["unload_btn"].click(self.unload, inputs=[self.lang], outputs=outputs, **QUIET)

    async def load(self, values: dict[Any, Any]) -> AsyncGenerator[Updates, None]:
        """Load what the form says."""
        labels = chat_labels(str(values.get(self.lang)))
        try:
            wanted = self._read(values)
            name = plain_name(wanted.arguments)
            yield {self.elements["info_box"]: labels["loading"].format(name=name)}
            await self.desk.load(wanted.arguments, wanted.base)
        except LOAD_ERRORS as error:
            yield {self.elements["info_box"]: labels["failed"].format(problem=error)}
            return
        yield self.state(str(values.get(self.lang))) | {self.elements["messages"]: (), self.elements["chatbot"]: []}

    async def unload(self, lang: str) -> AsyncGenerator[Updates, None]:
        """Unload the model."""
        labels = chat_labels(lang)
        yield {self.elements["info_box"]: labels["unloading"]}
        was_loaded = await self.desk.unload()
        yield {
            self.elements["info_box"]: labels["unloaded" if was_loaded else "no_model"],
            self.elements["chat_box"]: gr.update(visible=False),
        }

    def state(self, lang: str) -> Updates:
        """Show whether a model is loaded, whoever loaded it."""
        labels = chat_labels(lang)
        slot = self.desk.slot
        words = "no_model" if not slot.is_loaded else "loaded_two" if len(slot.voices) > 1 else "loaded"
        return {
            self.elements["info_box"]: labels[words].format(name=plain_name(slot.arguments)),
            self.elements["chat_box"]: gr.update(visible=slot.is_loaded),
            self.elements["chatbot_base"]: gr.update(visible=len(slot.voices) > 1),
        }

    def _read(self, values: Mapping[Any, Any]) -> Wanted:
        """Return what the form says, or everything that is wrong with it."""
        form = {element_id: values.get(element) for element_id, element in self.sources.items()}
        config = read_form(self.fields, form, "chat") | read_extra(str(values.get(self.elements["extra_args"]) or ""))
        chosen = tuned_model(config)
        wanted = Wanted(chosen, base_model(config) if values.get(self.elements["compare"]) else None)
        problems = [
            problem
            for one in (wanted.arguments, wanted.base)
            if one is not None
            for problem in find_problems(one, "chat", self.engine.places)
        ]
        if problems:
            raise JobError(problems)
        return wanted


def tuned_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the chosen model: a checkpoint is an adapter, or after full tuning the model itself."""
    adapters = config.get("adapter_name_or_path")
    method = tuning_methods().get(str(config.get("finetuning_type", "lora")))
    if not adapters or method is None or method.is_adapter:
        return dict(config)
    words = [adapters] if isinstance(adapters, str) else list(adapters)
    rest = {key: value for key, value in config.items() if key != "adapter_name_or_path"}
    return {**rest, "model_name_or_path": words[0]}


def base_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the untouched model."""
    return {key: value for key, value in config.items() if key != "adapter_name_or_path"}


def plain_name(arguments: Mapping[str, Any]) -> str:
    """Say in one line what is loaded."""
    model = str(arguments.get("model_name_or_path", ""))
    adapters = arguments.get("adapter_name_or_path") or ()
    words = [adapters] if isinstance(adapters, str) else [str(item) for item in adapters]
    return " + ".join([model, *words])
