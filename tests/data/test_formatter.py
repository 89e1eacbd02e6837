import json

import pytest

from llamafactory.data.conversation import RowDropped
from llamafactory.data.formatter import EmptyFormatter, FunctionFormatter, StringFormatter, ToolFormatter


CALL = json.dumps({"name": "get_weather", "arguments": {"city": "Paris"}})
TOOLS = json.dumps([{"name": "get_weather", "description": "Weather.", "parameters": {"type": "object"}}])


def test_slots_are_filled_one_for_one() -> None:
    formatter = StringFormatter(slots=["<s>", {"special": "bos_token"}, "Human: {{content}}\nAssistant:"])

    assert formatter.apply(content="Hi") == ["<s>", {"special": "bos_token"}, "Human: Hi\nAssistant:"]
    assert EmptyFormatter(slots=["\n", {"token": "[X]"}]).apply() == ["\n", {"token": "[X]"}]


@pytest.mark.parametrize("text", ["{{content}}", "{{idx}} {{name}}", "{{", "\\1 \\g<0>", "%s {0}"])
def test_content_is_never_scanned_for_places(text: str) -> None:
    formatter = StringFormatter(slots=["[{{idx}}] {{content}}!"])

    assert formatter.apply(content=text, idx="7") == [f"[7] {text}!"]


def test_a_part_of_a_template_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="needs a"):
        StringFormatter(slots=["Human:"])
    with pytest.raises(ValueError, match="takes no"):
        EmptyFormatter(slots=["{{content}}"])
    with pytest.raises(ValueError, match="not \\['other'\\]"):
        StringFormatter(slots=["{{content}} {{other}}"])
    with pytest.raises(ValueError, match="A slot is text"):
        EmptyFormatter(slots=[{"unknown": "x"}])


def test_a_function_turn_becomes_calls() -> None:
    formatter = FunctionFormatter(slots=["{{content}}", {"special": "eos_token"}], tool_format="default")

    text = 'Action: get_weather\nAction Input: {"city": "Paris"}'
    assert formatter.apply(content=CALL) == [text, {"special": "eos_token"}]
    assert formatter.apply(content=f"<think>hm</think>\n{CALL}")[0] == f"<think>hm</think>\n{text}"
    assert formatter.apply(content=f"Wait.\n<tool_call>\n{CALL}\n</tool_call>")[0] == f"Wait.\n{text}"


def test_a_function_turn_that_is_not_json_drops_the_row() -> None:
    with pytest.raises(RowDropped, match="not JSON"):
        FunctionFormatter().apply(content="call the weather")


def test_tools_are_described_and_calls_are_extracted() -> None:
    formatter = ToolFormatter(tool_format="qwen")

    assert "get_weather" in formatter.apply(content=TOOLS)[0]
    assert formatter.apply(content="[]") == [""]
    assert formatter.apply(content="") == [""]
    assert formatter.extract(f"<tool_call>\n{CALL}\n</tool_call>") == [("get_weather", '{"city": "Paris"}')]
    assert formatter.extract("just text") == "just text"
