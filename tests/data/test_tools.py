"""Properties of every tool format: what is written is read back, and nothing that a model writes is an error."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from llamafactory.data.conversation import RowDropped
from llamafactory.data.formatter import split_calls
from llamafactory.data.tools import TOOL_FORMATS, FunctionCall, Tool, parse_calls, parse_tools
from llamafactory.data.tools.calls import dump


FORMATS = TOOL_FORMATS.names()
DEMO = Path(__file__).parents[2] / "data" / "toolcall_en_demo.json"
ANY_NAME_FORMATS = ("granite3", "granite4", "hermes", "ling", "llama3", "minimax1", "mistral", "phi4_mini", "qwen")
NASTY = (
    "75001",
    "-1.5e3",
    "true",
    "None",
    "null",
    "[1]",
    '{"a": "b"}',
    '"quoted"',
    "'",
    "\\",
    "\\n",
    "\n",
    " 2 ",
    "\u00e9\U0001f600",
    "</parameter>",
    '"\\u003c/parameter>"',
    "\n</parameter>\n",
    "</tool_call>",
    "<tool_call>",
    "</arg_value>",
    "<tool_call|>",
    "]<|tool_call_end|>",
    "</tool_calls>",
    "</seed:tool_call>",
    "</\uff5cDSML\uff5cparameter>",
    "\nAction: f\nAction Input: {}",
    "{{content}}",
    "}",
    ")]",
)
TEXTS = st.sampled_from(NASTY) | st.text(max_size=10) | st.lists(st.sampled_from(NASTY), max_size=3).map("".join)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,10}", fullmatch=True)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


def few(num_examples: int) -> settings:
    """Settings that hold on a slow machine; there are many formats, so few examples for each."""
    return settings(max_examples=num_examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def calls_of(keys: st.SearchStrategy[str]) -> st.SearchStrategy[list[FunctionCall]]:
    arguments = st.dictionaries(keys, VALUES, max_size=3).map(dump)
    return st.lists(st.builds(FunctionCall, NAMES, arguments), min_size=1, max_size=3)


def schema_of(calls: list[FunctionCall]) -> list[Tool]:
    """Tools that say of every argument whether it is text."""
    properties: dict[str, dict[str, Any]] = {}
    for call in calls:
        for key, value in call.values.items():
            is_text = isinstance(value, str) and properties.get(call.name, {}).get(key, {}).get("type") != "object"
            properties.setdefault(call.name, {})[key] = {"type": "string" if is_text else "object"}
    for call in calls:
        for key, value in call.values.items():
            if not isinstance(value, str):
                properties[call.name][key] = {"type": "object"}
    return [{"name": call.name, "parameters": {"properties": properties.get(call.name, {})}} for call in calls]


@pytest.mark.parametrize("name", FORMATS)
@few(15)
@given(calls=calls_of(NAMES))
def test_calls_survive_writing_and_reading(name: str, calls: list[FunctionCall]) -> None:
    syntax = TOOL_FORMATS.get(name)

    assert syntax.parse(syntax.render_calls(calls)) == calls


@pytest.mark.parametrize("name", FORMATS)
@few(10)
@given(calls=calls_of(NAMES))
def test_calls_survive_with_a_schema_that_tells_text_from_numbers(name: str, calls: list[FunctionCall]) -> None:
    syntax, tools = TOOL_FORMATS.get(name), schema_of(calls)

    assert syntax.parse(syntax.render_calls(calls, tools), tools) == calls


@pytest.mark.parametrize("name", ANY_NAME_FORMATS)
@few(8)
@given(calls=calls_of(TEXTS))
def test_json_syntaxes_take_arguments_of_any_name(name: str, calls: list[FunctionCall]) -> None:
    syntax = TOOL_FORMATS.get(name)

    assert syntax.parse(syntax.render_calls(calls)) == calls


@pytest.mark.parametrize("name", FORMATS)
@few(10)
@given(
    calls=calls_of(NAMES),
    text=st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=12),
)
def test_text_in_front_of_calls_is_kept(name: str, calls: list[FunctionCall], text: str) -> None:
    assume(text != "[")  # a list that opens is JSON
    content = f"{text}\n<tool_call>\n{json.dumps([call._asdict() for call in calls])}\n</tool_call>"
    syntax = TOOL_FORMATS.get(name)

    turn = split_calls(content)
    written = "".join(piece.text for piece in syntax.turn_pieces(turn))

    assert turn.calls == calls
    assert syntax.read(written) == (text, calls)


@pytest.mark.parametrize("name", FORMATS)
@few(20)
@given(
    calls=calls_of(NAMES),
    start=st.integers(0, 200),
    length=st.integers(0, 20),
    junk=TEXTS | st.sampled_from(["{", "[", '"', "<", ">", "(", ",", "\ud800", '\\ud800"', "NaN", "1e999"]),
)
def test_damaged_calls_are_plain_text_or_calls_but_never_an_error(
    name: str, calls: list[FunctionCall], start: int, length: int, junk: str
) -> None:
    syntax = TOOL_FORMATS.get(name)
    written = syntax.render_calls(calls)
    for damaged in (written[:start], written[:start] + junk + written[start + length :], junk + written, junk):
        answer = syntax.read(damaged)

        assert answer.calls or answer.text == damaged
        for call in answer.calls:
            assert isinstance(json.loads(call.arguments), dict)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("mark", ["[", "{", '{"a":', "(", "<tool_call>", '{"name": "f", "arguments": ' + '{"a":'])
def test_deep_and_long_junk_is_plain_text(name: str, mark: str) -> None:
    syntax = TOOL_FORMATS.get(name)
    opening = syntax.render_calls([FunctionCall("f", '{"a": 1}')]).split("1")[0]
    for text in (mark * 20000, opening + mark * 20000, opening + "a" * 20000, "\n" * 20000 + mark):
        assert syntax.parse(text) == []


@pytest.mark.parametrize("name", FORMATS)
def test_the_demo_rows_render_and_come_back(name: str) -> None:
    syntax = TOOL_FORMATS.get(name)
    turns = 0
    for row in json.loads(DEMO.read_text(encoding="utf-8")):
        tools = parse_tools(row["tools"])
        assert all(tool["name"] in syntax.render_tools(tools) for tool in tools)
        for message in row["conversations"]:
            if message["from"] != "function_call":
                continue
            turn = split_calls(message["value"])
            written = "".join(piece.text for piece in syntax.turn_pieces(turn, tools))
            assert syntax.parse(written, tools) == turn.calls == syntax.parse(syntax.render_calls(turn.calls))
            turns += 1
    assert turns > 10


@pytest.mark.parametrize("name", sorted({*FORMATS} - {*ANY_NAME_FORMATS}))
def test_names_that_a_syntax_cannot_write_drop_the_row(name: str) -> None:
    with pytest.raises(RowDropped, match="name that the tool format cannot write"):
        TOOL_FORMATS.get(name).render_calls([FunctionCall("two\nlines", "{}")])


def test_gemma_refuses_text_with_its_own_quotes() -> None:
    with pytest.raises(RowDropped, match="cannot write"):
        TOOL_FORMATS.get("gemma4").render_calls([FunctionCall("f", dump({"a": '<|"|>'}))])


@pytest.mark.parametrize(
    "tools",
    [
        "[{]",
        '[{"description": "x"}]',
        '[{"name": 1}]',
        '{"name": "f", "x": NaN}',
        '{"name": "f", "x": 1e999}',
        '{"name": "f", "description": "\\ud800"}',
        "[" * 100000,
        "5",
    ],
)
def test_tools_that_are_not_tools_drop_the_row(tools: str) -> None:
    with pytest.raises(RowDropped, match=r"not JSON|no name"):
        parse_tools(tools)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "parameters",
    [None, [], "x", {}, {"properties": None}, {"properties": {"a": None}, "required": None}, {"type": ["a", "b"]}],
)
def test_any_schema_can_be_shown(name: str, parameters: object) -> None:
    tool = {"name": "f", "parameters": parameters}

    assert "f" in TOOL_FORMATS.get(name).render_tools([tool], has_system=True)


def test_arguments_written_as_a_string_are_not_encoded_twice() -> None:
    content = json.dumps([{"name": "f", "arguments": json.dumps({"a": "\u00e9"})}, {"name": "g", "arguments": ""}])

    assert parse_calls(content) == [FunctionCall("f", '{"a": "\u00e9"}'), FunctionCall("g", "{}")]


def test_an_openai_wrapper_is_taken_off_tools() -> None:
    tools = '[{"type": "function", "function": {"name": "f"}}, {"name": "g"}]'

    assert parse_tools(tools) == ({"name": "f"}, {"name": "g"})
    assert parse_tools("") == ()


@pytest.mark.parametrize(
    ("content", "before", "after"),
    [
        ('{"name": "f", "arguments": {}}', "", ""),
        (' [{"name": "f", "arguments": {}}]\n', " ", ""),
        ('<think>a {b}</think>\n\n{"name": "f", "arguments": {}}', "<think>a {b}</think>\n\n", ""),
        ('Look:\n{"name": "f", "arguments": {}}', "Look:\n", ""),
        ('A <tool_call>{"name": "f", "arguments": {}}</tool_call> b', "A ", "b"),
        ('<tool_call>{"name": "f", "arguments": {}}</tool_call>\n<tool_call>[]', None, None),
        ("f()", None, None),
        ("[]", None, None),
        ("[" * 100000, None, None),
        ('{"name": "f"}', None, None),
        ('{"name": "f", "arguments": [1]}', None, None),
    ],
)
def test_a_function_turn_is_split_into_text_and_calls(content: str, before: str | None, after: str | None) -> None:
    if before is None:
        with pytest.raises(RowDropped, match="not JSON with name and arguments"):
            split_calls(content)
    else:
        assert split_calls(content) == (before, [FunctionCall("f", "{}")], after)
