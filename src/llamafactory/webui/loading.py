"""What happens when somebody opens the page, and when they change its language."""

from typing import Any

import gradio as gr

from .components.run_panel import connect_run_panel
from .components.train_form import connect_language, connect_reload
from .engine import Engine, as_language
from .events import on
from .offers import user_config


LANGUAGE_KEY = "llamaboard-language"
"""Where the visitor's own browser keeps the language."""
NOTE_CHOICE = "() => { window.llamaboardLanguageChosen = true; }"
GREET = "(greeting, shown) => (greeting && !window.llamaboardLanguageChosen ? greeting : shown)"
"""Runs in the browser, where nothing can come between looking for a choice and changing the language."""


def connect(engine: Engine, demo: gr.Blocks) -> None:
    """Connect what reaches over several tabs; each tab has connected its own elements."""
    manager = engine.manager
    lang = manager.get_elem_by_id("top.lang")
    elements = manager.get_elem_list()
    remembered = gr.BrowserState("", storage_key=LANGUAGE_KEY, secret=LANGUAGE_KEY)
    if "train.current_run" in manager:
        connect_language(engine)
    else:
        on(lang.change, engine.change_lang, [lang], elements)
    on(lang.change, lambda value: value, [lang], [remembered])
    _connect_greeting(engine, demo, remembered)
    if "train.current_run" in manager:
        connect_run_panel(engine, demo)
        connect_reload(engine, demo)


def _connect_greeting(engine: Engine, demo: gr.Blocks, remembered: gr.BrowserState) -> None:
    """Let a page open in the visitor's language; a greeting that comes after they have chosen one changes nothing."""
    lang = engine.manager.get_elem_by_id("top.lang")
    greeting = gr.Textbox("", visible=False)

    def greet(kept: Any, request: gr.Request) -> str:
        """Return the visitor's language: what they chose before, the site's, else their browser's."""
        asked = str(request.headers.get("accept-language", "")) if request else ""
        site = user_config(engine.places).get("lang")
        return as_language(kept or site or asked.partition(",")[0].partition("-")[0])

    on(lang.input, None, js=NOTE_CHOICE)
    asked = on(demo.load, greet, [remembered], [greeting])
    on(asked.then, None, [greeting, lang], [lang], js=GREET)
