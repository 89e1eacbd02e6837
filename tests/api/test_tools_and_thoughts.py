"""Tool calls, tool results and thoughts over HTTP, with an engine that says what the test wants."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from serving import MODEL, FakeEngine, Running, serve

from llamafactory.data.conversation import Role


ASK: list[Any] = [{"role": "user", "content": "Weather?"}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Says the {name}.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    for name in ("weather", "time")
]
TWO_CALLS = (
    'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Z\u00fcrich"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "time", "arguments": {"city": "Bern"}}\n</tool_call>'
)


@pytest.fixture(scope="module")
def engine(tiny_tokenizer: Any) -> FakeEngine:
    return FakeEngine(tiny_tokenizer, template="qwen3")


@pytest.fixture(scope="module")
def running(engine: FakeEngine) -> Iterator[Running]:
    with serve(engine) as server:
        yield server


def ask(running: Running, **options: Any) -> Any:
    return running.client().chat.completions.create(**{"model": MODEL, "messages": ASK, **options})


def test_parallel_calls(running: Running, engine: FakeEngine) -> None:
    engine.answer = TWO_CALLS

    (choice,) = ask(running, tools=TOOLS).choices

    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    assert [call.function.name for call in choice.message.tool_calls] == ["weather", "time"]
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "Z\u00fcrich"}
    assert len({call.id for call in choice.message.tool_calls}) == 2
    assert json.loads(engine.asked[-1].tools)[1]["name"] == "time"


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_streamed_calls_are_the_same(running: Running, engine: FakeEngine, size: int) -> None:
    engine.answer, engine.size = TWO_CALLS, size

    chunks = list(ask(running, tools=TOOLS, stream=True))

    deltas = [chunk.choices[0].delta for chunk in chunks]
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert "".join(delta.content or "" for delta in deltas) == "Let me see."
    assert [call.index for call in calls] == [0, 1]
    assert [call.function.name for call in calls] == ["weather", "time"]
    assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Z\u00fcrich", "Bern"]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    engine.size = 4


def test_the_clients_own_stream_helper_puts_the_calls_together(running: Running, engine: FakeEngine) -> None:
    engine.answer = TWO_CALLS

    with running.client().chat.completions.stream(model=MODEL, messages=ASK, tools=TOOLS) as stream:
        message: Any = stream.get_final_completion().choices[0].message

    assert [call.function.name for call in message.tool_calls] == ["weather", "time"]


def test_a_call_and_its_results_come_back_into_the_prompt(running: Running, engine: FakeEngine) -> None:
    engine.answer = TWO_CALLS
    message = ask(running, tools=TOOLS).choices[0].message
    first, second = message.tool_calls
    engine.answer = "It rains."

    answer = ask(
        running,
        tools=TOOLS,
        messages=[
            *ASK,
            message,
            {"role": "tool", "tool_call_id": second.id, "content": "noon"},
            {"role": "tool", "tool_call_id": first.id, "content": [{"type": "text", "text": "rain"}]},
        ],
    )

    assert answer.choices[0].message.content == "It rains."
    assert answer.choices[0].finish_reason == "stop"
    turns = engine.asked[-1].messages
    assert [turn.role for turn in turns] == [Role.USER, Role.FUNCTION, Role.OBSERVATION, Role.OBSERVATION]
    assert [turn.content for turn in turns[2:]] == ["rain", "noon"]  # in the order of the calls, not as sent
    prompt = engine.tokenizer.decode(engine.encode_prompt(engine.asked[-1]))
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Z\u00fcrich"}}\n</tool_call>' in prompt
    assert prompt.index("rain") < prompt.index("noon")


def test_a_malformed_call_is_text(running: Running, engine: FakeEngine) -> None:
    engine.answer = '<tool_call>\n{"name": "weather", "arguments": {\n</tool_call>'

    for is_stream in (False, True):
        answer = ask(running, tools=TOOLS, stream=is_stream)
        if is_stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
        else:
            text = answer.choices[0].message.content
            assert answer.choices[0].message.tool_calls is None
            assert answer.choices[0].finish_reason == "stop"
        assert text == engine.answer


def test_tools_may_be_switched_off(running: Running, engine: FakeEngine) -> None:
    engine.answer = TWO_CALLS

    message = ask(running, tools=TOOLS, tool_choice="none").choices[0].message

    assert message.content == TWO_CALLS
    assert engine.asked[-1].tools is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tool_choice": "required"}, "cannot force"),
        ({"tool_choice": {"type": "function", "function": {"name": "time"}}}, "cannot force"),
        ({"parallel_tool_calls": False}, "cannot be switched off"),
        ({"response_format": {"type": "json_object"}}, "exclude each other"),
        ({"tools": [{"type": "function", "function": {"description": "x"}}]}, "tools.0.function.name is missing"),
    ],
)
def test_what_cannot_be_promised_is_refused(running: Running, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(openai.BadRequestError, match=sentence):
        ask(running, **{"tools": TOOLS, **options})


def test_a_thought_is_apart_from_the_text(running: Running, engine: FakeEngine) -> None:
    engine.answer = "<think>\nhm, hm\n</think>\n\nYes."

    message = ask(running).choices[0].message
    assert (message.reasoning_content, message.content) == ("hm, hm", "Yes.")

    deltas = [chunk.choices[0].delta for chunk in ask(running, stream=True)]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "hm, hm"
    assert "".join(delta.content or "" for delta in deltas) == "Yes."


def test_thinking_is_switched_by_its_usual_names(running: Running, engine: FakeEngine) -> None:
    engine.answer = "Yes."
    for options, expected in (
        ({}, None),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "high"}, True),
        ({"extra_body": {"enable_thinking": False}}, False),
        ({"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}, True),
        ({"response_format": {"type": "json_object"}}, False),
    ):
        ask(running, **options)
        assert engine.asked[-1].thinking is expected, options


def test_a_thought_that_is_sent_back_is_written_as_the_template_does(running: Running, engine: FakeEngine) -> None:
    turn: Any = {"role": "assistant", "content": "Yes.", "reasoning_content": "hm"}
    ask(running, messages=[*ASK, turn, *ASK])

    assert engine.asked[-1].messages[1].content.startswith("<think>")
    assert "hm" not in engine.tokenizer.decode(engine.encode_prompt(engine.asked[-1]))  # history drops thoughts
