"""Prompt ids of training, chat and the exported tokenizer's own template are the same, with thoughts and tools too."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from model_making import model_args
from transformers import AutoTokenizer

from llamafactory.chat import ChatModel
from llamafactory.chat.requests import ChatRequest
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.extras.errors import UserError
from llamafactory.hparams import DataArguments
from llamafactory.model import load_tokenizer
from llamafactory.train.export import export_model
from llamafactory.train.export.probe import DIALOGUES, make_probe, require_prompts


TOOLS = [{"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {"c": {}}}}]
CALLS = [{"name": "look", "arguments": {"c": "caf\u00e9"}}, {"name": "look", "arguments": {"c": 2}}]
SYSTEM = "Be kind."
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nNova."},
    {"role": "user", "content": "And  who\nam I?"},
]
CASES = [
    ("chatml", None, False),
    ("qwen3", True, True),
    ("qwen3", False, True),
    ("llama3", None, True),
    ("mistral", None, True),
    ("deepseekr1", True, False),
]


def rows(role: str) -> list[dict[str, Any]]:
    """A dialogue with two calls at once and their results: as data sets have it, or as clients send it."""
    call: dict[str, Any] = {"role": "function", "content": json.dumps(CALLS, ensure_ascii=False)}
    if role != "function":
        calls = [{"type": "function", "function": function} for function in CALLS]
        call = {"role": "assistant", "content": "", "tool_calls": calls}
    results = [{"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}]
    return [*TALK, call, *results]


@pytest.mark.parametrize(("name", "enable_thinking", "has_tools"), CASES)
def test_training_chat_and_the_exported_template_write_the_same_prompt(
    name: str, enable_thinking: bool | None, has_tools: bool, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    common = (
        {"template": name, "enable_thinking": enable_thinking} if enable_thinking is not None else {"template": name}
    )
    keys = {"model_name_or_path": str(tiny_llama_dir), "resize_vocab": True, **common}
    export_model({**keys, "export_dir": str(tmp_path / "out")})
    tools = json.dumps(TOOLS) if has_tools else None
    messages = rows("function") if has_tools else TALK

    arguments = model_args(tiny_llama_dir)
    tokenizer = load_tokenizer(arguments)["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, DataArguments(**common))
    answered = [*messages, {"role": "assistant", "content": "You."}]
    pairs = template.encode_multiturn(tokenizer, answered, SYSTEM, tools)
    trained = [index for pair in pairs[:-1] for ids in pair for index in ids] + pairs[-1][0]
    chat: Any = ChatModel(keys)
    request = ChatRequest(messages=messages, system=SYSTEM, tools=tools, options=None)  # type: ignore[arg-type]
    asked = chat.engine.encode_prompt(request)
    exported: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    sent = [{"role": "system", "content": SYSTEM}, *(rows("assistant") if has_tools else TALK)]
    found = exported.apply_chat_template(
        sent, tools=TOOLS if has_tools else None, add_generation_prompt=True, return_dict=False
    )

    assert tokenizer.decode(found) == tokenizer.decode(asked)
    assert found == asked
    assert trained == asked
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert saved.get("enable_thinking") == enable_thinking
    again: Any = ChatModel({"model_name_or_path": str(tmp_path / "out")})  # by its own template, and as it thinks
    assert again.engine.encode_prompt(request) == asked


OWN = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if loop.last and message.role == 'assistant' %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{{- message.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)


@pytest.mark.parametrize("enable_thinking", [True, False])
def test_a_models_own_template_thinks_as_at_the_export(
    enable_thinking: bool, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    base, target = tmp_path / "base", tmp_path / "out"
    shutil.copytree(tiny_llama_dir, base)
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = OWN
    tokenizer.save_pretrained(base)
    keys = {"enable_thinking": enable_thinking, "model_name_or_path": str(base)}
    export_model({**keys, "export_dir": str(target)})
    template = get_template_and_fix_tokenizer(tokenizer, DataArguments(enable_thinking=enable_thinking))
    trained, _ = template.encode_oneturn(tokenizer, [*TALK, {"role": "assistant", "content": "You."}], SYSTEM)

    exported: Any = AutoTokenizer.from_pretrained(target)
    sent = [{"role": "system", "content": SYSTEM}, *TALK]
    chat: Any = ChatModel({"model_name_or_path": str(target)})
    told: Any = ChatModel({"model_name_or_path": str(target), "enable_thinking": not enable_thinking})
    request = chat.chat_request(TALK, SYSTEM)

    assert chat.engine.encode_prompt(request) == trained
    assert exported.apply_chat_template(sent, add_generation_prompt=True, return_dict=False) == trained
    assert told.engine.encode_prompt(request) != trained


def test_the_export_is_compared_with_a_system_turn_and_with_tools(tiny_tokenizer_dir: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template="qwen3"))
    probe = make_probe(tokenizer, template)
    texts = [tokenizer.decode(prompt.ids) for prompt in probe.prompts]

    assert len(texts) == len(DIALOGUES)
    assert [("Answer in one word." in text, '"weather"' in text) for text in texts[-2:]] == [
        (True, False),
        (False, True),
    ]
    require_prompts(tokenizer, probe)
    spoiled: Any = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    for forgotten in ("{%- set tools = none %}", "{%- set messages = messages[-1:] %}"):
        spoiled.chat_template = f"{forgotten}{tokenizer.chat_template}"
        with pytest.raises(UserError, match="another prompt"):
            require_prompts(spoiled, probe)


def test_dialogues_that_a_template_refuses_are_left_out(tiny_tokenizer_dir: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    refusal = "{%- if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{%- endif %}"
    tokenizer.chat_template = refusal + OWN
    template = get_template_and_fix_tokenizer(tokenizer, DataArguments())

    assert [prompt.messages[0]["role"] for prompt in make_probe(tokenizer, template).prompts] == ["user"] * 4
