"""What happens on the page across tabs: language, loading."""

from typing import TYPE_CHECKING, Any

from .engine import Engine


if TYPE_CHECKING:
    from gradio import Blocks

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""Arguments of every event: no public endpoint, no flicker."""


def connect(engine: Engine, demo: "Blocks") -> None:
    """Connect what reaches over several tabs; each tab has connected its own elements."""
    lang = engine.manager.get_elem_by_id("top.lang")
    elements = engine.manager.get_elem_list()
    lang.change(engine.change_lang, [lang], elements, **QUIET)  # type: ignore[attr-defined]
