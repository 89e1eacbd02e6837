"""A slot template written as Jinja: what plain transformers renders is then the text the model was trained on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .formatter import Formatter, Piece, Place
from .jinja_tools import quote, write_calls, write_tools
from .thinking import Thinking, strip_lead


if TYPE_CHECKING:
    from .slot_template import SlotTemplate

TOOL_ROLES = "['tool', 'observation']"
NO_TOOLS = "this chat template has no place for tools; build the prompt with llamafactory"
REFUSE = "{{- raise_exception('" + NO_TOOLS + "') }}"


def write_jinja(template: "SlotTemplate") -> str:
    """Return the Jinja text. Tools that cannot be written are refused in it, never left out silently."""
    lines = [
        "{%- set ns = namespace(system='', tools='', lead='', question=-1, thought='', words='', calls='') %}",
        "{%- set turns = messages %}",
        "{%- if messages and messages[0]['role'] == 'system' %}",
        "{%- set ns.system = messages[0]['content'] %}{%- set turns = messages[1:] %}",
        "{%- endif %}",
        f"{{%- if not ns.system %}}{{%- set ns.system = {quote(template.default_system)} %}}{{%- endif %}}",
        f"{{%- if tools %}}{write_tools(template) or REFUSE}{{%- endif %}}",
        set_up_thinking(template),
        show(template.prefix),
        f"{{%- if ns.system or ns.tools %}}{write_system(template)}{{%- endif %}}",
        "{%- for turn in turns %}",
        "{%- set role = turn['role'] %}{%- set content = turn['content'] or '' %}",
        f"{{%- if role in {TOOL_ROLES} %}}",
        write_observation(template),
        "{%- elif role == 'assistant' %}",
        show(template.generation),
        split_answer(template),
        f"{{%- if turn['tool_calls'] %}}{write_function(template)}{{%- else %}}",
        write_answer(template, template.assistant, "ns.words"),
        "{%- endif %}",
        "{%- else %}",
        show(template.user, content="ns.lead + content"),
        "{%- set ns.lead = '' %}",
        "{%- endif %}",
        "{%- endfor %}",
        f"{{%- if add_generation_prompt %}}{write_opening(template)}{{%- endif %}}",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def write_system(template: "SlotTemplate") -> str:
    """Print the system prompt, or keep it for the first user turn."""
    if template.system_in_user:
        return f"{{%- set ns.lead = {expression(template.system.parts, '(ns.system ~ ns.tools)')} %}}"
    if template.system_thinking is None:
        return show(template.system, content="ns.system ~ ns.tools")
    return (
        f"{{%- if thinking %}}{show(template.system_thinking, content='ns.system ~ ns.tools')}"
        f"{{%- else %}}{show(template.system, content='ns.system ~ ns.tools')}{{%- endif %}}"
    )


def set_up_thinking(template: "SlotTemplate") -> str:
    """Let callers switch thinking, as trained when they say nothing; find the last question."""
    if template.thinking is None:
        return ""
    thinking, preserve = quote_value(template.enable_thinking), quote_value(template.preserve_thinking)
    return (
        f"{{%- set thinking = enable_thinking if enable_thinking is defined else {thinking} %}}"
        f"{{%- set preserve = preserve_thinking if preserve_thinking is defined else {preserve} %}}"
        "{%- for turn in turns %}{%- if turn['role'] == 'user' %}{%- set ns.question = loop.index0 %}{%- endif %}"
        "{%- endfor %}"
    )


def split_answer(template: "SlotTemplate") -> str:
    """Take the thought out of an answer, and forget it where it is to be forgotten."""
    if template.thinking is None:
        return "{%- set ns.words = content %}"
    return "\n".join(
        [
            "{%- set ns.thought = '' %}{%- set ns.words = content %}{%- set text = content.lstrip() %}",
            split_thought(template.thinking),
            "{%- if turn['reasoning_content'] %}{%- set ns.thought = turn['reasoning_content'].strip('\\n') %}"
            "{%- endif %}",
            "{%- set is_history = loop.index0 < ns.question and not preserve %}",
            "{%- if is_history or thinking is false %}{%- set ns.thought = '' %}{%- endif %}",
        ]
    )


def write_function(template: "SlotTemplate") -> str:
    """Print an answer that calls tools."""
    calls = write_calls(template)
    return calls + write_answer(template, template.function, "ns.calls") if calls else REFUSE


def write_answer(template: "SlotTemplate", formatter: Formatter, content: str) -> str:
    """Print an answer, its thought in front where it belongs."""
    thinking, lead = template.thinking, template.answer_lead
    if thinking is None:
        return show(formatter, content)
    body = strip_lead(formatter.parts, lead)
    fill = {"last": "loop.last", "active": "not is_history", "every": "true"}[thinking.fill]
    start, end = (Piece(word) for word in thinking.words)
    return (
        f"{{%- if ns.thought %}}{print_parts((*lead, start, Place('content'), end), 'ns.thought')}"
        f"{print_parts(body, content)}"
        f"{{%- elif {fill} %}}{print_parts((*lead, Piece(thinking.empty_thought)), '')}{print_parts(body, content)}"
        f"{{%- else %}}{show(formatter, content)}{{%- endif %}}"
    )


def split_thought(thinking: Thinking) -> str:
    """Take a thought out of `text`, as Thinking.split does."""
    branches: list[str] = []
    for start, end in thinking.marks:
        branches.append(
            f"{{%- {'elif' if branches else 'if'} text.startswith({quote(start)}) and {quote(end)} in text %}}"
            f"{{%- set halves = text[{len(start)}:].split({quote(end)}, 1) %}}"
            "{%- set ns.thought = halves[0].strip('\\n') %}{%- set ns.words = halves[1].lstrip('\\n') %}"
        )
    return "".join(branches) + "{%- endif %}"


def write_opening(template: "SlotTemplate") -> str:
    """Print the header of an answer, and an empty thought when the model is not to think."""
    if template.thinking is None:
        return show(template.generation)
    empty = (*template.answer_lead, Piece(template.thinking.empty_thought))
    return f"{show(template.generation)}{{%- if not thinking %}}{print_parts(empty, '')}{{%- endif %}}"


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


def quote_value(value: bool | None) -> str:
    """Write a switch as Jinja does."""
    return str(value).lower()
