"""The model that the page talks with: one for all browsers, loaded and unloaded by whoever asks.

Unloading while somebody reads an answer is safe: the engine stops, and that answer ends with the reason.
"""

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...chat.answer_syntax import AnswerSyntax, find_syntax
from ...extras.errors import UserError
from ...hparams.methods import method_of_adapter


if TYPE_CHECKING:
    from ...chat.chat_model import ChatModel

Arguments = Mapping[str, Any]
LoadModel = Callable[[dict[str, Any]], "ChatModel"]

TUNED, BASE = "tuned", "base"


@dataclass(frozen=True)
class Voice:
    """One of the answers that can be asked for: a model, with one of its adapters or with none."""

    name: str
    model: "ChatModel"
    adapter: str | None = None

    @cached_property
    def syntax(self) -> AnswerSyntax:
        """How answers of the model are written."""
        return find_syntax(self.model.engine.template, self.model.engine.tokenizer)

    @property
    def reads(self) -> frozenset[str]:
        """What the model takes beside text: image, video, audio."""
        writer = getattr(self.model.engine, "media", None)
        return frozenset(writer.kinds) if writer is not None else frozenset()


@dataclass(frozen=True)
class Plan:
    """Which models are loaded for a comparison, and which voice is which."""

    models: tuple[Arguments, ...]
    voices: tuple[tuple[str, int, str | None], ...]
    """name, place in `models`, adapter."""


class ModelSlot:
    """The place for one loaded model (or two that are compared)."""

    def __init__(self, load: LoadModel | None = None) -> None:
        self._load = load or load_chat_model
        self._busy = threading.Lock()
        self.voices: tuple[Voice, ...] = ()
        self.arguments: Arguments = {}
        """What the model was loaded with."""

    @property
    def is_loaded(self) -> bool:
        """Whether there is a model to talk with."""
        return bool(self.voices)

    def voice(self, name: str | None = None) -> Voice:
        """Return the voice with a name, or the first."""
        voices = self.voices
        if not voices:
            raise UserError("No model is loaded; load one first.")
        return next((voice for voice in voices if voice.name == name), voices[0])

    def load(self, arguments: Arguments, base: Arguments | None = None) -> None:
        """Load a model, and its base beside it when the two are to be compared."""
        if not self._busy.acquire(blocking=False):
            raise UserError("A model is being loaded or unloaded right now; wait for that.")
        try:
            if self.voices:
                raise UserError("A model is loaded already; unload it first.")
            plan = plan_voices(arguments, base)
            models: list[ChatModel] = []
            try:
                for one in plan.models:
                    models.append(self._load(dict(one)))
            except BaseException:  # a stop too: half a pair of models would hold memory that nobody can free
                for model in models:
                    model.close()
                raise
            self.arguments = arguments
            self.voices = tuple(Voice(name, models[place], adapter) for name, place, adapter in plan.voices)
        finally:
            self._busy.release()

    def unload(self) -> bool:
        """Stop the model and free its memory; False when there was none."""
        with self._busy:
            voices, self.voices, self.arguments = self.voices, (), {}
            for model in {id(voice.model): voice.model for voice in voices}.values():
                model.close()
            if voices:
                del voices
                free_memory()
                return True
        return False


def load_chat_model(arguments: dict[str, Any]) -> "ChatModel":
    """Load a model as `chat` and `api` do."""
    from ...chat import ChatModel

    return ChatModel(arguments)


def plan_voices(arguments: Arguments, base: Arguments | None) -> Plan:
    """Decide how tuned and base model are loaded: one set of weights where the adapter can be switched, else two."""
    if base is None:
        return Plan((arguments,), ((TUNED, 0, None),))
    adapters = _listed(arguments.get("adapter_name_or_path"))
    if not adapters and arguments.get("model_name_or_path") == base.get("model_name_or_path"):
        raise UserError("There is nothing to compare: choose the checkpoint of a tuned model, or compare less.")
    if len(adapters) == 1 and _can_switch(arguments, adapters[0]):
        rest = {key: value for key, value in arguments.items() if key != "adapter_name_or_path"}
        shared = {**rest, "infer_adapters": [f"{TUNED}={adapters[0]}"]}
        return Plan((shared,), ((TUNED, 0, TUNED), (BASE, 0, None)))
    return Plan((arguments, base), ((TUNED, 0, None), (BASE, 1, None)))


def free_memory() -> None:
    """Give the memory of models that nobody holds any more back to the device."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


def _listed(value: Any) -> list[str]:
    words = value.split(",") if isinstance(value, str) else value or ()
    return [str(word).strip() for word in words if str(word).strip()]


def _can_switch(arguments: Arguments, adapter: str) -> bool:
    """Tell whether one request may run with an adapter and the next without: it lies on single layers, and is here."""
    if arguments.get("infer_backend", "huggingface") != "huggingface" or arguments.get("infer_adapters"):
        return False
    path = Path(adapter) / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    method = method_of_adapter(str(config.get("peft_type"))) if isinstance(config, dict) else None
    return method is not None and method.kind == "layers"
