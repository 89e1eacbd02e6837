"""One prompt everywhere: what the API writes of a request is what a row of training data is learned behind."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from model_making import model_args
from serving import MODEL, serve

from llamafactory.api.conversation import read_dialogue, write_tools
from llamafactory.api.media_sources import MediaPolicy
from llamafactory.api.protocol import ChatMessage, Tool
from llamafactory.chat import ChatModel
from llamafactory.chat.answer_syntax import find_syntax
from llamafactory.data.converter import get_dataset_converter
from llamafactory.data.parser import DatasetAttr
from llamafactory.data.slot_template import SlotTemplate
from llamafactory.data.template import TEMPLATES, Template, get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments
from llamafactory.model import load_tokenizer


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

    before = learned_behind(template, tokenizer, trained)
    assert tokenizer.decode(prompt) == tokenizer.decode(before)
    assert prompt == before


def learned_behind(template: Template, tokenizer: Any, trained: dict[str, Any]) -> list[int]:
    """The ids before the last answer of a row of training data."""
    attr = DatasetAttr("file", "x", formatting="openai", messages="messages", tools="tools", **TAGS)
    conversation = get_dataset_converter("openai", attr)(trained)
    (encoded,) = template.encode_conversations(tokenizer, [conversation])
    pairs = [(turn.source, turn.target) for turn in encoded.turns]  # type: ignore[union-attr]
    return [number for source, target in pairs[:-1] for number in (*source, *target)] + pairs[-1][0]


@pytest.fixture(scope="module")
def long_llama_dir(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with room for tools."""
    folder = tmp_path_factory.mktemp("long") / "model"
    shutil.copytree(tiny_llama_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    return folder


@pytest.mark.parametrize(
    ("name", "enable_thinking", "has_tools"),
    [("qwen3", True, True), ("qwen3", False, False), ("deepseekr1", True, False), ("mistral", True, True)],
)
def test_over_http_a_model_reads_what_it_was_trained_behind(
    name: str, enable_thinking: bool, has_tools: bool, long_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: the official client, the server, the engine and the ids that a running batch reads."""
    keys = {"template": name, "enable_thinking": enable_thinking}
    model: Any = ChatModel({"model_name_or_path": str(long_llama_dir), "resize_vocab": True, **keys})
    read: list[list[int]] = []
    encode = model.engine.encode_prompt
    monkeypatch.setattr(model.engine, "encode_prompt", lambda request: read.append(encode(request)) or read[-1])
    sent = request("Let me see." if name != "mistral" else "")
    trained = row(sent, find_syntax(model.engine.template, model.engine.tokenizer).thought_marks)
    if not has_tools:
        sent, trained["tools"] = [*sent[:2], *sent[5:]], ""
        trained["messages"] = [*trained["messages"][:2], *trained["messages"][5:]]

    with serve(model.engine) as running:
        tools = {"tools": TOOLS} if has_tools else {}
        create: Any = running.client().chat.completions.create
        answer = create(model=MODEL, messages=sent, max_tokens=1, **tools)
    model.close()

    arguments = model_args(long_llama_dir, resize_vocab=True)
    tokenizer = load_tokenizer(arguments)["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template=name, enable_thinking=enable_thinking))
    before = learned_behind(template, tokenizer, trained)
    assert read
    assert all(ids == before for ids in read)
    assert answer.usage.prompt_tokens == len(before)
