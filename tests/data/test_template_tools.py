"""Tools in the written Jinja: the same text as in training, or a refusal."""

import json
from typing import Any

import pytest
from jinja2 import TemplateError
from toy_tokenizer import make_toy_tokenizer

from llamafactory.data import TEMPLATES, get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments


TOOLS = [
    {"name": "look", "description": "Look'up", "parameters": {"type": "object", "properties": {"c": {"enum": ["é"]}}}},
    {"name": "tell", "parameters": {"type": "object", "properties": {}}},
]
ONE = [{"name": "look", "arguments": {"c": "é", "deep": {"n": [1, None]}}}]
TWO = [*ONE, {"name": "tell", "arguments": {}}]
WRITTEN = ["qwen", "llama3", "mistral", "minimax1", "ling", "phi4_mini"]  # formats that are JSON


def dialogues(text: str, calls: list[dict[str, Any]], role: str) -> list[dict[str, Any]]:
    """Write one conversation as rows have it (function) or as requests have it (assistant)."""
    call = {"role": "function", "content": text + json.dumps(calls, ensure_ascii=False)}
    tool_calls = [{"type": "function", "function": function} for function in calls]
    request = {"role": "assistant", "content": text, "tool_calls": tool_calls}
    return [
        {"role": "user", "content": "Go."},
        call if role == "function" else request,
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "Done."},
    ]


def equip(name: str, **options: Any) -> tuple[Any, Any]:
    tokenizer = make_toy_tokenizer()
    return tokenizer, get_template_and_fix_tokenizer(tokenizer, DataArguments(template=name, **options))


def assert_same_text(tokenizer: Any, template: Any, calls: list[dict[str, Any]], system: str, text: str) -> None:
    pairs = template.encode_multiturn(tokenizer, dialogues(text, calls, "function"), system, json.dumps(TOOLS))
    expected = tokenizer.decode([number for pair in pairs for ids in pair for number in ids])
    lead = [{"role": "system", "content": system}] if system else []
    declared = [{"type": "function", "function": tool} for tool in TOOLS]
    for tools in (TOOLS, declared):
        request = lead + dialogues(text, calls, "assistant")
        assert tokenizer.apply_chat_template(request, tools=tools, tokenize=False) == expected


@pytest.mark.parametrize("name", TEMPLATES.names())
def test_the_written_chat_template_renders_tools_or_refuses_them(name: str) -> None:
    tokenizer, template = equip(name)

    try:
        for calls in (ONE, TWO):
            for system in ("", "Be kind."):
                for text in ("", "Let me see.\n"):
                    assert_same_text(tokenizer, template, calls, system, text)
    except TemplateError as error:
        assert "no place for tools" in str(error)  # noqa: PT017  (either way is right, but for these)
        assert template.tools.tool_format not in WRITTEN


@pytest.mark.parametrize("name", ["qwen3", "mimo_v2", "bailing_v2", "deepseekr1", "glmz1"])
@pytest.mark.parametrize("enable", [True, False, None])
def test_thoughts_before_calls(name: str, enable: bool | None) -> None:
    tokenizer, template = equip(name, enable_thinking=enable, tool_format="qwen")

    assert_same_text(tokenizer, template, TWO, "Be kind.", "<think>\nHm.\n</think>\n\n")
    assert_same_text(tokenizer, template, ONE, "", "")


def test_what_is_not_json_is_refused() -> None:
    words, _ = equip("chatml")
    xml, _ = equip("qwen3_5")

    with pytest.raises(TemplateError, match="no place for tools"):
        words.apply_chat_template([{"role": "user", "content": "Go."}], tools=TOOLS)
    with pytest.raises(TemplateError, match="no place for tools"):
        xml.apply_chat_template(dialogues("", ONE, "assistant"))
