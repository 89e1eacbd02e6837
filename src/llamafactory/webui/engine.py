"""What all tabs share: the elements, the folders, the words, and the one loaded chat model."""

from typing import TYPE_CHECKING, Any

from ..extras.env import read_env
from .form import describe_field
from .layout import fields_of, find_field
from .manager import Manager
from .places import Places, read_places
from .wording import DEFAULT_LANGUAGE, LANGUAGES, words_of


if TYPE_CHECKING:
    from gradio.blocks import Block

FORM_TABS = ("top", "train")
PLAIN = ("label", "info", "placeholder", "value")


class Engine:
    """Made once, when the page is built. What a form shows lives in its browser: nothing here is any one visitor's."""

    def __init__(self, demo_mode: bool = False, pure_chat: bool = False, places: Places | None = None) -> None:
        self.demo_mode = demo_mode
        self.pure_chat = pure_chat
        self.places = places or read_places(read_env())
        self.manager = Manager()
        self.chatter: Any = None
        """The chat model of the Chat tab, once that tab is built; one for all visitors, as there is one machine."""
        self.fields = fields_of(FORM_TABS)

    def change_lang(self, lang: str) -> "dict[Block, dict[str, Any]]":
        """Return an update for every element that has words."""
        import gradio as gr

        language = lang if lang in LANGUAGES else DEFAULT_LANGUAGE
        updates: dict[Block, dict[str, Any]] = {}
        for element in self.manager.get_elem_list():
            words = self.words(self.manager.get_id_by_elem(element), language)
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
