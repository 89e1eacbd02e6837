"""What stands below the tabs: the memory of the device."""

from typing import TYPE_CHECKING

import gradio as gr

from ..engine import Engine


if TYPE_CHECKING:
    from gradio.components import Component


def create_footer(engine: Engine) -> "dict[str, Component]":
    """Make the elements below the tabs."""
    return {"device_memory": gr.Slider(0, 1, interactive=False, visible=False)}
