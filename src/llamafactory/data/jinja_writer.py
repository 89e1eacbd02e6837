"""A slot template written as Jinja: what plain transformers renders is then the text the model was trained on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .formatter import Formatter, Piece, Place


if TYPE_CHECKING:
    from .slot_template import SlotTemplate

TOOL_ROLES = "['tool', 'observation']"
NO_TOOLS = "this chat template has no place for tools; build the prompt with llamafactory"


def write_jinja(template: "SlotTemplate") -> str:
    """Return the Jinja text. Tools are refused in it, never left out silently."""
    lines = [
        f"{{%- if tools %}}{{{{- raise_exception({quote(NO_TOOLS)}) }}}}{{%- endif %}}",
        "{%- set ns = namespace(system='', lead='') %}",
        "{%- set turns = messages %}",
        "{%- if messages and messages[0]['role'] == 'system' %}",
        "{%- set ns.system = messages[0]['content'] %}{%- set turns = messages[1:] %}",
        "{%- endif %}",
        f"{{%- if not ns.system %}}{{%- set ns.system = {quote(template.default_system)} %}}{{%- endif %}}",
        show(template.prefix),
        f"{{%- if ns.system %}}{write_system(template)}{{%- endif %}}",
        "{%- for turn in turns %}",
        "{%- set role = turn['role'] %}{%- set content = turn['content'] or '' %}",
        f"{{%- if role in {TOOL_ROLES} %}}",
        write_observation(template),
        "{%- elif role == 'assistant' %}",
        f"{{%- if turn['tool_calls'] %}}{{{{- raise_exception({quote(NO_TOOLS)}) }}}}{{%- endif %}}",
        show(template.generation),
        show(template.assistant),
        "{%- else %}",
        show(template.user, content="ns.lead + content"),
        "{%- set ns.lead = '' %}",
        "{%- endif %}",
        "{%- endfor %}",
        f"{{%- if add_generation_prompt %}}{show(template.generation)}{{%- endif %}}",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def write_system(template: "SlotTemplate") -> str:
    """Print the system prompt, or keep it for the first user turn."""
    if not template.system_in_user:
        return show(template.system, content="ns.system")
    return f"{{%- set ns.lead = {expression(template.system.parts, 'ns.system')} %}}"


def write_observation(template: "SlotTemplate") -> str:
    """Print a tool's answer; answers of tools that were called together share one turn."""
    parts = template.observation.parts
    place = parts.index(Place("content"))
    before, after = print_parts(parts[:place], "content"), print_parts(parts[place + 1 :], "content")
    return (
        f"{{%- if loop.previtem and loop.previtem['role'] in {TOOL_ROLES} %}}"
        f"{{{{- {quote(template.observation_join)} }}}}{{%- else %}}{before}{{%- endif %}}"
        "{{- content }}"
        f"{{%- if not (loop.nextitem and loop.nextitem['role'] in {TOOL_ROLES}) %}}{after}{{%- endif %}}"
    )


def show(formatter: Formatter, content: str = "content") -> str:
    """Print a part of the template."""
    return print_parts(formatter.parts, content)


def print_parts(parts: Sequence[Piece | Place], content: str) -> str:
    """Print pieces and places; "" when there are none."""
    return f"{{{{- {expression(parts, content)} }}}}" if parts else ""


def expression(parts: Sequence[Piece | Place], content: str) -> str:
    """Return a Jinja expression for pieces and places."""
    words: list[str] = []
    for part in parts:
        if isinstance(part, Place):
            words.append(content if part.name == "content" else "(loop.index0 // 2) | string")
        elif part.kind == "special":
            words.append(f"({part.text} or '')")
        else:
            words.append(quote(part.text))
    return " ~ ".join(words)


def quote(text: str) -> str:
    """Write text as a Jinja string."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"
