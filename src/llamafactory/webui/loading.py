"""What happens when somebody opens the page, and when they change its language."""

from typing import Any

import gradio as gr

from .components.run_panel import connect_run_panel
from .components.train_form import connect_language, connect_reload
from .engine import Engine, as_language
from .events import on
from .offers import user_config
from .wording import DEFAULT_LANGUAGE


LANGUAGE_KEY = "llamaboard-language"
"""Where the visitor's own browser keeps the language."""


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

    def greet(kept: Any, request: gr.Request) -> Any:
        """Choose the visitor's language: what they chose before, the site's, else their browser's.

        Where that is what the page stands in already, nothing is sent: they may have chosen another meanwhile.
        """
        asked = str(request.headers.get("accept-language", "")) if request else ""
        site = user_config(engine.places).get("lang")
        language = as_language(kept or site or asked.partition(",")[0].partition("-")[0])
        return gr.skip() if language == DEFAULT_LANGUAGE else language

    on(demo.load, greet, [remembered], [lang])
    if "train.current_run" in manager:
        connect_run_panel(engine, demo)
        connect_reload(engine, demo)
