"""Widgets out of the layout: kind, choices, bounds, default and help all come from the declaration of the key."""

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .layout import UNSET, Field, Group, list_fields, list_groups
from .wording import DEFAULT_LANGUAGE, translate_help, words_of


if TYPE_CHECKING:
    from gradio.components import Component

BOOLEANS = {True: "true", False: "false"}


def start_value(field: Field) -> Any:
    """Return what a fresh page shows."""
    from .exchange import to_widget

    if field.param is None:
        return field.default if field.default is not None else (field.choices[0] if field.choices else False)
    declared = None if field.param.is_required else field.param.default
    return to_widget(field, declared if field.default is None else field.default)


def make_widget(field: Field, **overrides: Any) -> "Component":
    """Make the gradio component of a field."""
    import gradio as gr

    common: dict[str, Any] = {"elem_id": field.id.replace(".", "-"), **describe_field(field, DEFAULT_LANGUAGE)}
    common |= {"value": start_value(field), "interactive": True, "min_width": 150} | overrides
    if field.widget == "switch":
        return gr.Checkbox(**common)
    if field.widget == "slider" and field.range is not None:
        low, high, step = field.range
        return gr.Slider(low, high, step=step, **common)
    if field.widget in ("choice", "open", "names"):
        choices = common.pop("choices", None) or offered(field)
        several = field.widget == "names"
        return gr.Dropdown(choices=choices, allow_custom_value=field.widget != "choice", multiselect=several, **common)
    if field.widget == "secret":
        return gr.Textbox(type="password", **common)
    return gr.Textbox(lines=2 if field.widget == "mapping" else 1, **common)


def describe_field(field: Field, language: str) -> dict[str, str]:
    """Return label, info and placeholder of a field in a language."""
    words = words_of(field.id, language)
    help_text = words.get("info") or translate_help(field.help, field.key, language)
    texts = {"label": words.get("label", field.name), "info": help_text}
    if "placeholder" in words and field.widget in ("text", "names_text", "mapping", "secret", "product"):
        texts["placeholder"] = words["placeholder"]
    return texts


def offered(field: Field, language: str = DEFAULT_LANGUAGE, without: Sequence[Any] = ()) -> list[tuple[str, Any]]:
    """Return the choices of a field as (what is shown, value)."""
    names = words_of(field.id, language).get("choices", {})
    return [(str(names.get(str(word), _shown(word))), _word(word)) for word in field.choices if word not in without]


def make_groups(
    tab: str, made: "dict[str, Any]", names: Sequence[str] | None = None, *, choices: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Make the groups of a tab (all, or those named) where the caller stands; return their containers by name.

    Elements that are in `made` already are put in their places, and new ones are added to it. `choices` are those that
    only the page knows.
    """
    import gradio as gr

    containers: dict[str, Any] = {}
    wanted = [group for group in list_groups(tab) if names is None or group.name in names]
    for section, groups in itertools.groupby(wanted, key=lambda group: group.section):
        if section:
            containers[section] = _accordion(tab, section)
        with containers[section] if section else contextlib.nullcontext():
            for group in groups:
                is_fold = group.folded and not section
                mark = f"{tab}-{group.name}"
                container = _accordion(tab, group.name) if is_fold else gr.Group(elem_id=mark, elem_classes="open")
                containers[group.name] = container
                with container:
                    _make_rows(tab, group, made, choices or {})
    return containers


def folds(containers: Mapping[str, Any]) -> dict[str, Any]:
    """Return those containers that have a label, which changes with the language."""
    import gradio as gr

    return {name: box for name, box in containers.items() if isinstance(box, gr.Accordion)}


def _accordion(tab: str, name: str) -> Any:
    import gradio as gr

    label = words_of(f"{tab}.{name}", DEFAULT_LANGUAGE).get("label", name)
    return gr.Accordion(label, open=False, elem_id=f"{tab}-{name}", elem_classes="fold")


def _make_rows(tab: str, group: Group, made: "dict[str, Any]", choices: Mapping[str, Any]) -> None:
    import gradio as gr

    fields = list_fields(tab)
    for row in group.rows:
        with gr.Row(equal_height=False, elem_classes="fields"):
            for name in row:
                if name in made:
                    made[name].render()
                else:
                    known = {"choices": choices[name]} if name in choices else {}
                    made[name] = make_widget(fields[name], **known)


def _word(word: Any) -> Any:
    return BOOLEANS.get(word, word) if isinstance(word, bool) else word


def _shown(word: Any) -> str:
    return "-" if word == UNSET else str(_word(word))
