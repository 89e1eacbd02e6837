"""The Train tab."""

from typing import TYPE_CHECKING

from ..engine import Engine
from ..form import make_groups


if TYPE_CHECKING:
    from gradio.components import Component


def create_train_tab(engine: Engine) -> "dict[str, Component]":
    """Make the elements of the Train tab."""
    import gradio as gr

    made: dict[str, Component] = {"extra_args": gr.Textbox(value="{}", lines=2, render=False)}
    made |= make_groups("train", made)
    return made
