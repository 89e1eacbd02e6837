"""What stands above the tabs: language, model, method, how the model is loaded."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...extras.env import read_env
from ..arguments import CUSTOM
from ..engine import Engine, as_language
from ..events import on
from ..form import make_groups, make_widget
from ..layout import list_fields
from ..offers import HUBS, checkpoint_names, model_names, model_path, model_template, start_hub, template_names
from ..wording import DEFAULT_LANGUAGE, LANGUAGES, say


if TYPE_CHECKING:
    from gradio.blocks import Block


def create_top(engine: Engine) -> "dict[str, Block]":
    """Make the elements above the tabs."""

    def dropdown(name: str, choices: Any, value: Any, **options: Any) -> Any:
        words = engine.words(f"top.{name}", DEFAULT_LANGUAGE)
        return gr.Dropdown(
            choices, value=value, render=False, elem_id=f"top-{name}", min_width=150, **words, **options
        )

    languages = [(name, code) for code, name in LANGUAGES.items()]
    made: dict[str, Any] = {
        "lang": dropdown("lang", languages, DEFAULT_LANGUAGE),
        "hub_name": dropdown("hub_name", list(HUBS), start_hub()),
        "model_name": dropdown("model_name", model_names(""), CUSTOM),
    }
    templates = template_names()
    if engine.demo_mode:
        made |= _demo_fields(templates)
    folds = make_groups("top", made, choices={"template": templates})
    made["loading"] = folds["loading"]
    _connect(engine, made)
    return made


def _demo_fields(templates: Sequence[str]) -> dict[str, Any]:
    """Make the fields that a page of a demonstration opens with: its model (DEMO_MODEL) and template."""
    env, fields = read_env(), list_fields("top")
    if not env.demo_model:
        return {}
    chosen = {"value": env.demo_template} if env.demo_template else {}
    return {
        "model_path": make_widget(fields["model_path"], value=env.demo_model, render=False),
        "template": make_widget(fields["template"], choices=templates, render=False, **chosen),
    }


def _connect(engine: Engine, made: dict[str, Any]) -> None:
    name, hub, method = made["model_name"], made["hub_name"], made["finetuning_type"]

    def choose_model(chosen: str, where: str, lang: str) -> Any:
        """Fill in path and template of a model of the catalog; Custom leaves what stands there."""
        if chosen == CUSTOM:
            return gr.skip(), gr.skip()
        template = model_template(chosen)
        if not template:
            gr.Warning(say("warn_no_instruct", as_language(lang)))
        return model_path(engine.places, chosen, where), template

    def choose_hub(where: str, chosen: str) -> Any:
        names = model_names(where)
        path = gr.skip() if chosen == CUSTOM else model_path(engine.places, chosen, where)
        return gr.update(choices=names, value=chosen if chosen in names else CUSTOM), path

    def offer_checkpoints(chosen: str, tuning: str) -> Any:
        return gr.update(choices=checkpoint_names(engine.places, chosen, tuning))

    on(name.input, choose_model, [name, hub, made["lang"]], [made["model_path"], made["template"]])
    on(hub.input, choose_hub, [hub, name], [name, made["model_path"]])
    on(made["checkpoint_path"].focus, offer_checkpoints, [name, method], [made["checkpoint_path"]])
    on(method.change, lambda: [], None, [made["checkpoint_path"]])
