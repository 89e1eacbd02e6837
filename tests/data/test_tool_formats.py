"""The exact text of every tool format, against golden texts, and what else a syntax must read.

test_tool_golden.json holds the texts that the established tool writes, where they agree with the models' own chat
templates; `corrected` says what was put right. `default` describes tools in our own words.
"""

import json
from datetime import date
from pathlib import Path

import pytest

from llamafactory.data.converter import get_dataset_converter
from llamafactory.data.formatter import FunctionFormatter, ToolFormatter
from llamafactory.data.parser import DatasetAttr
from llamafactory.data.tools import TOOL_FORMATS, FunctionCall, ToolFormat, parse_calls, parse_tools
from llamafactory.data.tools.bare_json import Llama3Format


GOLDEN = json.loads(Path(__file__).with_name("test_tool_golden.json").read_text(encoding="utf-8"))
EXAMPLE = GOLDEN["example"]
TOOLS = parse_tools(json.dumps(EXAMPLE["tools"]))
ONE, TWO = (parse_calls(json.dumps(EXAMPLE[key])) for key in ("call_one", "call_two"))
WEATHER = FunctionCall("get_weather", '{"city": "Paris"}')


def syntax_of(name: str) -> ToolFormat:
    return Llama3Format(day=date(2024, 3, 5)) if name == "llama3" else TOOL_FORMATS.get(name)


def test_every_format_has_golden_texts() -> None:
    assert set(GOLDEN["formats"]) == set(TOOL_FORMATS.names())


@pytest.mark.parametrize(("name", "golden"), GOLDEN["formats"].items())
def test_golden_texts_of_tools_and_calls(name: str, golden: dict[str, str]) -> None:
    syntax = syntax_of(name)

    assert syntax.render_calls(ONE, TOOLS) == syntax.render_calls(ONE) == golden["one"]
    assert syntax.render_calls(TWO) == golden["two"]
    assert syntax.parse(golden["two"]) == TWO
    if "tools" in golden:
        assert syntax.render_tools(TOOLS) == golden["tools"]


def test_llama3_names_the_day_on_which_it_is_rendered() -> None:
    assert f"Today Date: {date.today():%d} " in TOOL_FORMATS.get("llama3").render_tools(TOOLS)


def test_the_default_description_names_tools_and_arguments() -> None:
    text = TOOL_FORMATS.get("default").render_tools(TOOLS)

    assert "- get_weather: Look up the weather.\n  - city (string; required): City name\n" in text
    assert "  - unit (string; one of c, f): Unit\n" in text
    assert "\nAction: the tool's name\nAction Input: " in text


def test_a_system_prompt_in_front_is_kept_apart_as_the_family_does() -> None:
    for name in ("llama3", "glm4", "granite4"):
        text = syntax_of(name).render_tools(TOOLS).lstrip("\n")
        assert syntax_of(name).render_tools(TOOLS, has_system=True) == f"\n\n{text}"
    assert TOOL_FORMATS.get("ling").render_tools(TOOLS, has_system=True).startswith("\n# Tools")
    assert TOOL_FORMATS.get("seed_oss").render_tools(TOOLS, has_system=True).startswith("\nTool List:\n")
    assert TOOL_FORMATS.get("lfm2").render_tools(TOOLS, has_system=True).startswith("\nList of tools: ")
    assert (
        TOOL_FORMATS.get("minimax1")
        .render_tools(TOOLS, has_system=True)
        .startswith("<end_of_sentence>\n<beginning_of_sentence>system tool_setting=tools\nYou are provided")
    )


@pytest.mark.parametrize("name", ["qwen3_5", "seed_oss", "minimax2", "glm4_moe", "glm4_7"])
def test_text_that_looks_like_a_number_needs_a_schema_to_stay_unquoted(name: str) -> None:
    syntax = TOOL_FORMATS.get(name)
    tools = [{"name": "f", "parameters": {"properties": {"zip": {"type": "string"}, "n": {"type": "integer"}}}}]
    call = FunctionCall("f", '{"zip": "75001", "n": 2, "x": "true"}')

    with_schema, without = syntax.render_calls([call], tools), syntax.render_calls([call])

    assert '"75001"' not in with_schema
    assert '"true"' in with_schema
    assert '"75001"' in without
    assert syntax.parse(with_schema, tools) == syntax.parse(without) == [call]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("llama3", '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}'),
        ("llama3", '\n\n{\n  "type": "function",\n  "name": "get_weather",\n  "parameters": {"city": "Paris"}\n}'),
        ("mistral", '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "abc123def"}]'),
        ("mistral_v13", '[TOOL_CALLS]get_weather[CALL_ID]abc123def[ARGS]{"city": "Paris"}'),
        ("qwen", '<tool_call>{"name":"get_weather","arguments":"{\\"city\\": \\"Paris\\"}"}</tool_call>'),
        ("qwen3_5", "<tool_call><function=get_weather><parameter=city>Paris</parameter></function></tool_call>"),
        (
            "seed_oss",
            "<seed:tool_call><function=get_weather><parameter=city>Paris</parameter></function></seed:tool_call>",
        ),
        ("glm4_moe", "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call>"),
        ("glm4_7", "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>"),
        ("lfm2", "<|tool_call_start|>[get_weather(city='Paris')]<|tool_call_end|>"),
        ("default", 'Action: get_weather\nAction Input: {\n  "city": "Paris"\n}\n'),
        ("gemma4", '<|tool_call>call:get_weather{city: <|"|>Paris<|"|>}<tool_call|>'),
        ("minimax1", '<tool_calls>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_calls>'),
    ],
)
def test_small_variations_of_models_are_understood(name: str, text: str) -> None:
    assert TOOL_FORMATS.get(name).parse(text) == [WEATHER]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("glm4", 'Here:\nget_weather\n{"city": "Paris"}\nand more'),
        ("glm4", 'python\n{"city": "Paris"}'),
        ("llama3", '{"name": "Paris", "people": 2}'),
        ("llama3", '[{"name": "get_weather", "parameters": {}},\n{"name": "g", "parameters": {}}'),
        ("qwen", '<tool_call>\n{"name": "f", "arguments": {}}'),
        ("qwen", '<tool_call>{"name": "f", "arguments": {}}</tool_call><tool_call>{"name": 1}</tool_call>'),
        ("default", "Action: think\nAction Input: nothing"),
        ("lfm2", "<|tool_call_start|>[f(1)]<|tool_call_end|>"),
        ("lfm2", "<|tool_call_start|>[__import__('os').system('x')]<|tool_call_end|>"),
        ("gemma4", "<|tool_call>call:f{a:1"),
        ("seed_oss", "<seed:tool_call>\n<function=f\n<parameter=a>1</parameter>\n</function>\n</seed:tool_call>"),
    ],
)
def test_what_is_not_quite_a_call_stays_text(name: str, text: str) -> None:
    assert TOOL_FORMATS.get(name).read(text, TOOLS) == (text, [])


def test_text_around_calls_comes_back_apart_from_them() -> None:
    text = '<think>hm</think>\n\nLook.\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\nDone.'

    answer = ToolFormatter(tool_format="qwen").read(text)

    assert answer == ("<think>hm</think>\n\nLook.\nDone.", [FunctionCall("f", "{}")])


def test_marks_are_the_templates_own_and_values_are_not() -> None:
    turn = json.dumps({"name": "f", "arguments": {"a": "<|tool_call_end|>"}})

    pieces = FunctionFormatter(tool_format="lfm2").pieces(content=turn)

    assert "".join(piece.text for piece in pieces if piece.kind == "literal") == (
        "<|tool_call_start|>[]<|tool_call_end|>"
    )
    assert [piece.text for piece in pieces if piece.kind == "content"] == ['f(a="<|tool_call_end|>")']


def test_formatters_pass_the_schema_on() -> None:
    tools = json.dumps([{"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}])
    turn = json.dumps({"name": "f", "arguments": {"a": "1"}})

    (text,) = FunctionFormatter(tool_format="glm4_7").apply(content=turn, tools=tools)

    assert text == "<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>"
    assert ToolFormatter(tool_format="glm4_7").extract(str(text), tools) == [("f", '{"a": "1"}')]


def test_openai_messages_with_parallel_calls_and_their_results_render_as_the_family_does() -> None:
    call = {"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "K\\u00f6ln"}'}}
    row = {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Wait.", "tool_calls": [call, call]},
            {"role": "tool", "content": "1"},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "Done."},
        ],
        "tools": EXAMPLE["tools"],
    }
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    attr = DatasetAttr(
        "file", "x", formatting="openai", messages="messages", observation_tag="tool", tools="tools", **tags
    )

    conversation = get_dataset_converter("openai", attr)(row)
    text = FunctionFormatter(tool_format="qwen").apply(content=conversation.messages[1].content)[0]

    block = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "K\u00f6ln"}}\n</tool_call>'
    assert text == f"Wait.\n{block}\n{block}"
    assert [message.content for message in conversation.messages[2:4]] == ["1", "2"]
    assert parse_tools(conversation.tools) == TOOLS
