"""Connecting handlers to elements: one way for the whole page, with no public endpoint and errors as sentences."""

import functools
from collections.abc import Callable
from typing import Any

from ..extras.errors import UserError
from ..extras.logging import redact
from .markup import escape


Handler = Callable[..., Any]
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""How events are connected: no public endpoint, and no bar over what they change."""


def on(event: Any, handler: Handler | None, inputs: Any = None, outputs: Any = None, **options: Any) -> Any:
    """Connect an event such as `button.click`; a UserError of the handler becomes a message on the page."""
    wrapped = None if handler is None else say_errors(handler)
    return event(wrapped, inputs, outputs, **{**QUIET, **options})


def this_page() -> Any:
    """Return the page that is being built, for what happens when somebody opens it."""
    from gradio.context import Context

    return Context.root_block


def say_errors(handler: Handler) -> Handler:
    """Turn a mistake of the visitor into gradio's message box, escaped and without secrets."""

    @functools.wraps(handler)
    def run(*args: Any) -> Any:
        import gradio as gr

        try:
            return handler(*args)
        except UserError as error:
            raise gr.Error(escape(redact(str(error))), print_exception=False) from None

    return run


def shown(text: str) -> Any:
    """Return an update for a box of HTML, which takes no room while it is empty."""
    import gradio as gr

    return gr.update(value=text, visible=bool(text))
