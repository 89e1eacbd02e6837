"""What stands above the tabs: language, model, method, how the model is loaded."""

from typing import TYPE_CHECKING

from ..engine import Engine
from ..form import make_groups
from ..wording import DEFAULT_LANGUAGE, LANGUAGES, words_of


if TYPE_CHECKING:
    from gradio.components import Component

HUBS = ("huggingface", "modelscope", "openmind")
CUSTOM = "Custom"


def create_top(engine: Engine) -> "dict[str, Component]":
    """Make the elements above the tabs."""
    import gradio as gr

    def words(name: str) -> dict:
        found = words_of(f"top.{name}", DEFAULT_LANGUAGE)
        return {key: found[key] for key in ("label", "info") if key in found}

    choices = [(name, code) for code, name in LANGUAGES.items()]
    made: dict[str, Component] = {
        "lang": gr.Dropdown(choices, value=DEFAULT_LANGUAGE, render=False, elem_id="top-lang", **words("lang")),
        "hub_name": gr.Dropdown(HUBS, value=HUBS[0], render=False, elem_id="top-hub_name", **words("hub_name")),
        "model_name": gr.Dropdown(
            [CUSTOM], value=CUSTOM, render=False, elem_id="top-model_name", **words("model_name")
        ),
    }
    make_groups("top", made)
    return made
