import json
from dataclasses import replace
from typing import Any

import pytest

from llamafactory.data.conversation import Conversation, FieldError, Message, Role, RowDropped
from llamafactory.data.converter import detect_layout, get_dataset_converter
from llamafactory.data.parser import DatasetAttr
from llamafactory.extras.errors import UserError


ALPACA = DatasetAttr("file", "x", history="history", system="system", tools="tools")
SHAREGPT = DatasetAttr("file", "x", "sharegpt", system="system", tools="tools")
OPENAI = DatasetAttr(
    "file",
    "x",
    "openai",
    messages="messages",
    tools="tools",
    role_tag="role",
    content_tag="content",
    user_tag="user",
    assistant_tag="assistant",
    observation_tag="tool",
)


def convert(attr: DatasetAttr, row: dict[str, Any]) -> Conversation:
    return get_dataset_converter(attr.formatting, attr)(row)


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": tag, "value": text} for tag, text in pairs]


def test_an_alpaca_row_becomes_turns() -> None:
    row = {
        "instruction": "Add.",
        "input": "1+1",
        "output": "2",
        "history": [["Hi", "Hello"]],
        "system": "Count.",
        "tools": [{"name": "f"}],
    }

    assert convert(ALPACA, row) == Conversation(
        (
            Message(Role.USER, "Hi"),
            Message(Role.ASSISTANT, "Hello"),
            Message(Role.USER, "Add.\n1+1"),
            Message(Role.ASSISTANT, "2"),
        ),
        "Count.",
        '[{"name": "f"}]',
    )


def test_missing_and_null_fields_are_empty() -> None:
    assert convert(ALPACA, {"instruction": "Hi", "input": None}) == Conversation((Message(Role.USER, "Hi"),))
    with pytest.raises(RowDropped, match="no text"):
        convert(ALPACA, {"instruction": ""})


def test_a_sharegpt_row_becomes_turns() -> None:
    call = json.dumps({"name": "f", "arguments": {}})
    row = {
        "conversations": turns(
            ("system", "Count."), ("human", "Hi"), ("function_call", call), ("observation", "3"), ("gpt", "Three")
        ),
        "system": "ignored when the turns have one",
        "tools": '[{"name": "f"}]',
    }

    conversation = convert(SHAREGPT, row)

    assert [message.role for message in conversation.messages] == ["user", "function", "observation", "assistant"]
    assert (conversation.system, conversation.tools) == ("Count.", '[{"name": "f"}]')


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        ([], "no messages"),
        ([("system", "x")], "no messages"),
        ([("gpt", "x")], "wrong order of roles"),
        ([("human", "x"), ("human", "y")], "wrong order of roles"),
        ([("human", "x"), ("gpt", "y"), ("gpt", "z")], "wrong order of roles"),
        ([("human", "x"), ("system", "y")], "wrong order of roles"),
        ([("human", "x"), ("bot", "y")], 'unknown role "bot"'),
    ],
)
def test_turns_out_of_order_drop_the_row(pairs: list[tuple[str, str]], reason: str) -> None:
    with pytest.raises(RowDropped, match=reason):
        convert(SHAREGPT, {"conversations": turns(*pairs)})


def test_openai_messages_become_turns() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    row = {
        "messages": [
            {"role": "developer", "content": "Count."},
            {"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "you"}]},
            {"role": "assistant", "content": None, "tool_calls": [call, call]},
            {"role": "tool", "content": "3"},
            {"role": "tool", "content": "4"},
            {"role": "assistant", "content": "Seven", "weight": 0},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }

    conversation = convert(OPENAI, row)

    function = {"name": "f", "arguments": '{"a": 1}'}
    assert conversation.messages == (
        Message(Role.USER, "Hi you"),
        Message(Role.FUNCTION, json.dumps([function, function])),
        Message(Role.OBSERVATION, "3"),
        Message(Role.OBSERVATION, "4"),
        Message(Role.ASSISTANT, "Seven", loss=False),
    )
    assert conversation.system == "Count."


@pytest.mark.parametrize(
    ("attr", "row", "message"),
    [
        (ALPACA, {"instruction": 3}, "field 'instruction' is 3, but text is needed"),
        (ALPACA, {"instruction": "x", "output": ["y"]}, "field 'output' is"),
        (ALPACA, {"instruction": "x", "history": "y"}, "field 'history' is \"y\", but a list is needed"),
        (ALPACA, {"instruction": "x", "history": [["y"]]}, "'history', item 1, is"),
        (ALPACA, {"instruction": "x", "tools": 3}, "field 'tools' is 3, but a list of tools is needed"),
        (SHAREGPT, {"conversations": "x"}, "field 'conversations' is \"x\", but a list is needed"),
        (SHAREGPT, {"conversations": ["x"]}, "field 'conversations', item 1, is \"x\", but an object is needed"),
        (SHAREGPT, {"conversations": [{"from": "human", "value": 3}]}, "turn 1, 'value' is 3, but text is needed"),
        (SHAREGPT, {"conversations": [{"from": "human", "value": "x", "loss": -0.5}]}, "loss is -0.5"),
        (SHAREGPT, {"conversations": [{"from": "gpt", "value": "x", "weight": "1"}]}, 'weight is "1"'),
        (OPENAI, {"messages": [{"role": "assistant", "content": "x", "loss": float("nan")}]}, "message 1, 'content'"),
        (OPENAI, {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "only text parts"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(attr: DatasetAttr, row: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError) as caught:
        convert(attr, row)

    assert message in str(caught.value)


def test_only_the_listed_values_are_filled_in() -> None:
    attr = replace(ALPACA, values={"name": "{{author}}", "author": "us"})

    conversation = convert(attr, {"instruction": "{{name}} {{author}} {{other}}", "output": "I", "system": "{{name}}"})

    assert conversation.messages[0].content == "{{author}} us {{other}}"
    assert conversation.system == "{{author}}"


@pytest.mark.parametrize(
    ("row", "formatting", "changes"),
    [
        ({"instruction": "a", "output": "b", "system": "c"}, "alpaca", {"prompt": "instruction", "system": "system"}),
        ({"prompt": "a", "completion": "b"}, "alpaca", {"prompt": "prompt", "response": "completion", "query": None}),
        ({"question": "a", "answer": "b"}, "alpaca", {"prompt": "question", "response": "answer"}),
        ({"text": "a"}, "alpaca", {"prompt": "text", "response": None}),
        ({"conversations": turns(("human", "x"))}, "sharegpt", {"messages": "conversations", "role_tag": "from"}),
        ({"messages": [{"role": "user", "content": "x"}]}, "openai", {"messages": "messages", "user_tag": "user"}),
        ({"conversations": [{"role": "user", "content": "x"}]}, "openai", {"messages": "conversations"}),
        ({"instruction": "a", "chosen": "b", "rejected": "c"}, "alpaca", {"ranking": True, "chosen": "chosen"}),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "alpaca", {"ranking": True, "prompt": "prompt"}),
        ({"prompt": "a", "completion": "b", "label": True}, "alpaca", {"kto_tag": "label", "response": "completion"}),
        ({"prompt": "a", "response": "b", "label": "fun"}, "alpaca", {"kto_tag": None}),
        ({"messages": [{"role": "user", "content": "x"}], "kto_tag": False}, "openai", {"kto_tag": "kto_tag"}),
        (
            {"chosen": [{"role": "user", "content": "x"}], "rejected": [{"role": "user", "content": "x"}]},
            "openai",
            {"ranking": True, "messages": "chosen"},
        ),
        (
            {"conversations": turns(("user", "x"), ("assistant", "y"))},
            "sharegpt",
            {"user_tag": "user", "assistant_tag": "assistant"},
        ),
    ],
)
def test_the_layout_of_an_unlisted_dataset_is_found(
    row: dict[str, Any], formatting: str, changes: dict[str, Any]
) -> None:
    attr = detect_layout(row, DatasetAttr("file", "x", is_detected=True))

    assert attr.formatting == formatting
    assert {name: getattr(attr, name) for name in changes} == changes


def test_an_unknown_layout_shows_what_was_found_and_what_is_known() -> None:
    with pytest.raises(UserError, match=r"first row has \['x', 'y'\]; use alpaca \(instruction"):
        detect_layout({"y": 1, "x": 2}, DatasetAttr("file", "x"))
