"""Tools and tool calls in the written Jinja: found out by rendering samples, for every syntax that is made of JSON.

A syntax with another spelling of tools or arguments (XML, Python, words) has no Jinja; what cannot be written is
refused by the written template, never left out.
"""

import json
from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING, Any, NamedTuple

from .conversation import RowDropped


if TYPE_CHECKING:
    from .slot_template import SlotTemplate

SAMPLE_TOOLS: list[dict[str, Any]] = [
    {"name": "tool_one", "description": "One.", "parameters": {"type": "object", "properties": {}}},
    {"name": "tool_two", "description": "Two.", "parameters": {"type": "object", "properties": {}}},
    {"name": "tool_six", "description": "Six.", "parameters": {"type": "object", "properties": {}}},
]
SAMPLE_CALLS = [("call_one", {"one": 1}), ("call_two", {"two": "zwei"}), ("call_six", {"six": [6]})]
THOUGHT_ENDS = "('</think>', '</seed:think>', '<channel|>')"


class ToolShape(NamedTuple):
    """How a list of tools is spelled: one JSON text each, or one list."""

    before: str
    joint: str
    after: str
    is_list: bool
    is_declared: bool
    indent: int | None


class CallShape(NamedTuple):
    """How calls are spelled: name, middle and arguments of each, and what surrounds one call or several."""

    single: tuple[str, str]
    several: tuple[str, str]
    middle: str
    joint: str


def write_tools(template: "SlotTemplate") -> str | None:
    """Return Jinja that puts the described tools into `ns.tools`; None when the syntax has none."""
    shapes = [find_tool_shape(template, system) for system in ("", "system")]
    bare, below = shapes
    if bare is None or below is None:
        return None
    declared = "{'type': 'function', 'function': function}" if bare.is_declared else "function"
    listing = "".join(
        [
            "{%- set ns.shown = [] %}{%- for tool in tools %}",
            "{%- set function = tool['function'] if 'function' in tool else tool %}",
            f"{{%- set ns.shown = ns.shown + [{declared}] %}}{{%- endfor %}}",
        ]
    )
    to_json = "tojson" if bare.indent is None else f"tojson(indent={bare.indent})"
    if bare.is_list:
        listing += f"{{%- set ns.listed = ns.shown | {to_json} %}}"
    else:
        listing += (
            "{%- set ns.listed = '' %}{%- for tool in ns.shown %}"
            f"{{%- set ns.listed = ns.listed ~ ({quote(bare.joint)} if not loop.first else '') "
            f"~ (tool | {to_json}) %}}{{%- endfor %}}"
        )
    return (
        f"{listing}{{%- if ns.system %}}{set_tools(below)}{{%- else %}}{set_tools(bare, is_first=True)}{{%- endif %}}"
    )


def set_tools(shape: ToolShape, is_first: bool = False) -> str:
    """Put the words around the list."""
    before = shape.before.lstrip("\n") if is_first else shape.before
    words = " ~ strftime_now('%d %b %Y') ~ ".join(quote(half) for half in before.split(today()))
    return f"{{%- set ns.tools = {words} ~ ns.listed ~ {quote(shape.after)} %}}"


def find_tool_shape(template: "SlotTemplate", system: str) -> ToolShape | None:
    """Find the spelling that explains one, two and three tools."""
    texts = [
        "".join(piece.text for piece in template.tools.pieces(content=json.dumps(SAMPLE_TOOLS[:num]), system=system))
        for num in (1, 2, 3)
    ]
    for is_list in (True, False):
        for is_declared in (True, False):
            for indent in (None, 4):
                shape = read_tool_shape(texts, is_list, is_declared, indent)
                if shape:
                    return shape
    return None


def read_tool_shape(texts: Sequence[str], is_list: bool, is_declared: bool, indent: int | None) -> ToolShape | None:
    """Read the words around the list from the first text, what stands between tools from the second; try the third."""
    tools = [{"type": "function", "function": tool} if is_declared else tool for tool in SAMPLE_TOOLS]

    def spell(num: int, joint: str) -> str:
        return dump(tools[:num], indent) if is_list else joint.join(dump(tool, indent) for tool in tools[:num])

    before, found, after = texts[0].partition(spell(1, ""))
    joint = ""
    if found and not is_list:
        start = len(before) + len(spell(1, ""))
        joint = texts[1][start:].partition(dump(tools[1], indent))[0]
    is_right = found and all(text == before + spell(num, joint) + after for num, text in enumerate(texts, 1))
    return ToolShape(before, joint, after, is_list, is_declared, indent) if is_right else None


def write_calls(template: "SlotTemplate") -> str | None:
    """Return Jinja that puts the calls of a turn, behind `ns.words`, into `ns.calls`; None when there is none."""
    shape = find_call_shape(template)
    if shape is None:
        return None
    lead, joint = find_text_joint(template, shape)
    return "".join(
        [
            "{%- set ns.calls = '' %}{%- for call in turn['tool_calls'] %}",
            "{%- set function = call['function'] if 'function' in call else call %}",
            "{%- set given = function['arguments'] %}",
            f"{{%- set ns.calls = ns.calls ~ ({quote(shape.joint)} if not loop.first else '') ~ function['name'] ~ ",
            f"{quote(shape.middle)} ~ (given if given is string else given | tojson) %}}{{%- endfor %}}",
            f"{{%- if turn['tool_calls'] | length == 1 %}}{surround(shape.single)}",
            f"{{%- else %}}{surround(shape.several)}{{%- endif %}}",
            f"{{%- if ns.words.rstrip().endswith({THOUGHT_ENDS}) %}}",
            f"{{%- set ns.calls = {quote(lead)} ~ ns.words ~ ns.calls %}}{{%- elif ns.words %}}",
            f"{{%- set ns.calls = {quote(lead)} ~ ns.words.rstrip('\\n') ~ {quote(joint)} ~ ns.calls %}}",
            "{%- endif %}",
        ]
    )


def surround(words: tuple[str, str]) -> str:
    """Put words around the calls."""
    return f"{{%- set ns.calls = {quote(words[0])} ~ ns.calls ~ {quote(words[1])} %}}"


def find_call_shape(template: "SlotTemplate") -> CallShape | None:
    """Find the spelling that explains one, two and three calls."""
    names = [name for name, _ in SAMPLE_CALLS]
    arguments = [dump(given) for _, given in SAMPLE_CALLS]
    try:
        texts = [spell_calls(template, num) for num in (1, 2, 3)]
    except RowDropped:
        return None
    single = texts[0].partition(names[0])
    middle, found, end = single[2].partition(arguments[0])
    several, _, rest = texts[1].partition(names[0])
    joint, _, last = rest[len(middle) + len(arguments[0]) :].partition(names[1])
    tail = last[len(middle) + len(arguments[1]) :]
    shape = CallShape((single[0], end), (several, tail), middle, joint)

    def spell(num: int, around: tuple[str, str]) -> str:
        calls = [name + middle + given for name, given in zip(names[:num], arguments, strict=False)]
        return around[0] + joint.join(calls) + around[1]

    expected = [spell(1, shape.single), spell(2, shape.several), spell(3, shape.several)]
    return shape if found and texts == expected else None


def find_text_joint(template: "SlotTemplate", shape: CallShape) -> tuple[str, str]:
    """Find what stands in front of text that precedes calls, and between it and them."""
    text = spell_calls(template, 1, "some text\n")
    lead, _, rest = text.partition("some text")
    return lead, rest[: rest.index(shape.single[0] + SAMPLE_CALLS[0][0])]


def spell_calls(template: "SlotTemplate", num: int, text: str = "") -> str:
    """Write the first sample calls as the template does."""
    calls = [{"name": name, "arguments": given} for name, given in SAMPLE_CALLS[:num]]
    pieces = template.function.fillings({"content": text + json.dumps(calls), "tools": ""})["content"]
    return "".join(piece.text for piece in pieces)


def dump(value: Any, indent: int | None = None) -> str:
    """Write JSON as `tojson` does."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def today() -> str:
    """Return the day as descriptions of tools name it."""
    return date.today().strftime("%d %b %Y")


def quote(text: str) -> str:
    """Write text as a Jinja string."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"
