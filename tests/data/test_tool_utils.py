import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafactory.data.conversation import RowDropped
from llamafactory.data.tool_utils import TOOL_FORMATS, FunctionCall, dump, parse_calls, parse_tools


NAMES = st.from_regex(r"[a-z_][a-z0-9_.]{0,12}", fullmatch=True)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(
    st.builds(
        lambda name, arguments: FunctionCall(name, dump(arguments)),
        NAMES,
        st.dictionaries(st.text(min_size=1, max_size=8), VALUES, max_size=3),
    ),
    min_size=1,
    max_size=3,
)


@pytest.mark.parametrize("name", TOOL_FORMATS.names())
@given(calls=CALLS)
def test_calls_survive_writing_and_reading(name: str, calls: list[FunctionCall]) -> None:
    syntax = TOOL_FORMATS.get(name)

    assert syntax.parse(syntax.render_calls(calls)) == calls


@pytest.mark.parametrize("name", TOOL_FORMATS.names())
@given(
    text=st.text() | st.sampled_from(["{", "<tool_call>{</tool_call>", "Action: x\nAction Input: {", '[{"name": 1}]'])
)
def test_malformed_output_is_plain_text(name: str, text: str) -> None:
    assert isinstance(TOOL_FORMATS.get(name).parse(text), list)


def test_arguments_written_as_a_string_are_not_encoded_twice() -> None:
    content = json.dumps([{"name": "f", "arguments": json.dumps({"a": "\u00e9"})}])

    assert parse_calls(content) == [FunctionCall("f", '{"a": "\u00e9"}')]


def test_an_openai_wrapper_is_taken_off_tools() -> None:
    assert parse_tools('[{"type": "function", "function": {"name": "f"}}, {"name": "g"}]') == [
        {"name": "f"},
        {"name": "g"},
    ]
    with pytest.raises(RowDropped, match="no name"):
        parse_tools('[{"description": "x"}]')
    with pytest.raises(RowDropped, match="not JSON"):
        parse_tools("[{]")


def test_wire_formats_are_those_of_the_models() -> None:
    one = [FunctionCall("get_weather", '{"city": "Paris", "unit": "c"}')]
    two = [FunctionCall("get_weather", '{"days": 2}'), FunctionCall("get_time", '{"tz": "UTC"}')]
    qwen, llama3 = TOOL_FORMATS.get("qwen"), TOOL_FORMATS.get("llama3")

    assert qwen.render_calls(one) == (
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "unit": "c"}}\n</tool_call>'
    )
    assert llama3.render_calls(one) == '{"name": "get_weather", "parameters": {"city": "Paris", "unit": "c"}}'
    assert llama3.render_calls(two) == (
        '[{"name": "get_weather", "parameters": {"days": 2}}, {"name": "get_time", "parameters": {"tz": "UTC"}}]'
    )
    assert qwen.render_tools([{"name": "f"}]).startswith("\n\n# Tools\n\nYou may call one or more functions")
    assert '\n<tools>\n{"type": "function", "function": {"name": "f"}}\n</tools>\n' in qwen.render_tools(
        [{"name": "f"}]
    )
    assert llama3.render_tools([{"name": "f"}]).startswith("Cutting Knowledge Date: December 2023\nToday Date: ")
