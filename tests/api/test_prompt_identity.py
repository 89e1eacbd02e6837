"""One prompt everywhere: what the API writes of a request is what a row of training data is learned behind."""

import json
from pathlib import Path
from typing import Any

import pytest

from llamafactory.api.conversation import read_dialogue, write_tools
from llamafactory.api.media_sources import MediaPolicy
from llamafactory.api.protocol import ChatMessage, Tool
from llamafactory.chat.answer_syntax import find_syntax
from llamafactory.data.converter import get_dataset_converter
from llamafactory.data.parser import DatasetAttr
from llamafactory.data.slot_template import SlotTemplate
from llamafactory.data.template import TEMPLATES, get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments


TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Says the {name}.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    for name in ("weather", "time")
]

TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
}


def kinds() -> list[str]:
    """One template of each combination of tool syntax and marks of thoughts."""
    found: dict[Any, str] = {}
    for name in TEMPLATES.names():
        template = TEMPLATES.get(name)
        if isinstance(template, SlotTemplate):
            marks = template.thinking.marks if template.thinking else ()
            found.setdefault((template.function.tool_format, tuple(marks)), name)
    return sorted(found.values())


def call(number: int, name: str, city: str) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps({"city": city}, ensure_ascii=False)}
    return {"id": f"call_{number}", "type": "function", "function": function}


def request(thought: str) -> list[dict[str, Any]]:
    """A conversation as a client sends it, the results of the calls in another order than the calls."""
    thinking = {"reasoning_content": thought} if thought else {}
    return [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Weather in "}, {"type": "text", "text": "Z\u00fcrich?"}],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [call(1, "weather", "Z\u00fcrich"), call(2, "time", "Bern")],
        },
        {"role": "tool", "tool_call_id": "call_2", "content": "noon"},
        {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
        {"role": "assistant", "content": "Sun at noon.", **thinking},
        {"role": "user", "content": "And in Bern?"},
    ]


def row(messages: list[dict[str, Any]], marks: Any) -> dict[str, Any]:
    """The same conversation as a row of training data, with an answer behind it."""
    turns = [dict(message) for message in messages]
    turns[3], turns[4] = turns[4], turns[3]
    for turn in turns:
        if thought := turn.pop("reasoning_content", None):
            turn["content"] = f"{marks[0][0]}\n{thought}\n{marks[0][1]}\n\n{turn['content']}"
    return {"messages": [*turns, {"role": "assistant", "content": "Rain."}], "tools": json.dumps(TOOLS)}


@pytest.mark.parametrize("has_tools", [True, False])
@pytest.mark.parametrize("name", kinds())
def test_a_request_reads_what_a_row_trained_behind(name: str, has_tools: bool, tiny_tokenizer_dir: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template=name))
    syntax = find_syntax(template, tokenizer)
    sent = request("Let me see." if syntax.thought_marks else "")
    trained = row(sent, syntax.thought_marks)
    if not has_tools:
        sent, trained["tools"] = [*sent[:2], *sent[5:]], ""
        trained["messages"] = [*trained["messages"][:2], *trained["messages"][5:]]

    dialogue = read_dialogue([ChatMessage(**message) for message in sent], syntax, MediaPolicy())
    tools = write_tools([Tool(**tool) for tool in TOOLS]) if has_tools else None
    prompt = template.encode_prompt(tokenizer, dialogue.messages, dialogue.system, tools)

    attr = DatasetAttr("file", "x", formatting="openai", messages="messages", tools="tools", **TAGS)
    conversation = get_dataset_converter("openai", attr)(trained)
    (encoded,) = template.encode_conversations(tokenizer, [conversation])
    pairs = [(turn.source, turn.target) for turn in encoded.turns]  # type: ignore[union-attr]
    before = [number for source, target in pairs[:-1] for number in (*source, *target)] + pairs[-1][0]
    assert tokenizer.decode(prompt) == tokenizer.decode(before)
    assert prompt == before
