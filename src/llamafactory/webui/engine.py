"""What all tabs share: the elements, the folders, the words, and the one loaded chat model."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..extras.env import read_env
from .availability import Standing, judge, missing_package
from .form import describe_field, offered
from .layout import Field, fields_of, find_field, folds_of
from .manager import Manager
from .markup import plain_info
from .places import Places, read_places
from .runner import Runner
from .wording import DEFAULT_LANGUAGE, LANGUAGES, say, words_of


if TYPE_CHECKING:
    from gradio.blocks import Block

FORM_TABS = ("top", "train")
PLAIN = ("label", "info", "placeholder", "value")
PROBLEM, UNUSABLE = "field-problem", "field-off"


class Engine:
    """Made once, when the page is built. What a form shows lives in its browser: nothing here is any one visitor's."""

    def __init__(self, demo_mode: bool = False, pure_chat: bool = False, places: Places | None = None) -> None:
        self.demo_mode = demo_mode
        self.pure_chat = pure_chat
        self.places = places or read_places(read_env())
        self.manager = Manager()
        self.runner = Runner(self.places, demo_mode=demo_mode)
        self.chatter: Any = None
        """The chat model of the Chat tab, once that tab is built; one for all visitors, as there is one machine."""
        self.kept_form: Any = None
        """The element that stands for what a visitor's own browser keeps of the form."""
        self.fields = fields_of(FORM_TABS)

    def change_lang(self, lang: str) -> "dict[Block, dict[str, Any]]":
        """Return an update for every element that has words."""
        import gradio as gr

        language = as_language(lang)
        updates: dict[Block, dict[str, Any]] = {}
        for element in self.manager.get_elem_list():
            found = self.words(self.manager.get_id_by_elem(element), language)
            words = {key: text for key, text in found.items() if hasattr(element, key)}
            if words:
                updates[element] = gr.update(**words)
        return updates

    def words(self, element_id: str, language: str) -> dict[str, Any]:
        """Return the properties of an element that are words."""
        field = find_field(element_id)
        if field is not None:
            return dict(describe_field(field, language))
        words = words_of(element_id, language)
        names = words.get("choices", {})
        choices = {"choices": [(name, word) for word, name in names.items()]} if names else {}
        return choices | {key: value for key, value in words.items() if key in PLAIN}

    def values(self, data: "Mapping[Any, Any]") -> dict[str, Any]:
        """Turn what an event received (element -> value) into element id -> value."""
        return {self.manager.get_id_by_elem(element): value for element, value in data.items()}

    def fill(self, values: Mapping[str, Any]) -> "dict[Block, dict[str, Any]]":
        """Return updates that put values (by element id) into the form."""
        import gradio as gr

        return {self.manager.get_elem_by_id(key): gr.update(value=value) for key, value in values.items()}

    def stand(
        self, values: Mapping[str, Any], language: str, problems: Iterable[tuple[tuple[str, ...], str]] = ()
    ) -> "dict[Block, dict[str, Any]]":
        """Return updates that grey out what cannot be used and put problems (keys, sentence) beside their fields."""
        import gradio as gr

        notes: dict[str, list[str]] = {}
        for keys, message in problems:
            for key in keys:
                notes.setdefault(key, []).append(message)
        standings = judge(self.fields, values)
        updates: dict[Block, dict[str, Any]] = {}
        for element_id, field in self.fields.items():
            found = [text for key in field.keys for text in notes.get(key, ())]
            updates[self.manager.get_elem_by_id(element_id)] = gr.update(
                **_look(field, standings[element_id], language, found)
            )
        return updates | self._group_updates(standings)

    def _group_updates(self, standings: Mapping[str, Standing]) -> "dict[Block, dict[str, Any]]":
        """Hide the folds of which nothing belongs to this stage and method."""
        import gradio as gr

        return {
            self.manager.get_elem_by_id(fold): gr.update(
                visible=not all(standings[element].is_hidden for element in elements if element in standings)
            )
            for fold, elements in folds_of(FORM_TABS).items()
            if fold in self.manager
        }


def as_language(code: object) -> str:
    """Return a language that there are words in."""
    return code if isinstance(code, str) and code in LANGUAGES else DEFAULT_LANGUAGE


def _look(field: Field, standing: Standing, language: str, problems: list[str]) -> dict[str, Any]:
    """Return how a field looks: usable or not, with the reason or the problem in place of its help."""
    look: dict[str, Any] = {
        "info": describe_field(field, language)["info"],
        "interactive": standing.is_usable,
        "visible": not standing.is_hidden,
        "elem_classes": [],
    }
    if standing.reason:
        text = f"{say('word_unavailable', language)} {standing.reason}"
        look |= {"info": plain_info(text), "elem_classes": [UNUSABLE]}
    if problems:
        look |= {"info": plain_info("; ".join(problems)), "elem_classes": [PROBLEM], "interactive": True}
        look["visible"] = True
    if field.widget in ("choice", "open"):
        look["choices"] = [
            (f"{label} ({note})" if (note := missing_package(field, word)) else label, word)
            for label, word in offered(field, language, standing.refused)
        ]
    return look
