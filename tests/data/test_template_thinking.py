"""Thoughts: which stay, which are learned, and that training, prompts and the written Jinja agree (N20)."""

import json
from typing import Any

import pytest
from toy_tokenizer import make_toy_tokenizer

from llamafactory.data import TEMPLATES, get_template_and_fix_tokenizer
from llamafactory.data.conversation import as_conversation
from llamafactory.data.slot_template import SlotTemplate
from llamafactory.data.thinking import Thinking
from llamafactory.hparams import DataArguments


REASONING = [
    name for name in TEMPLATES.names() if isinstance(row := TEMPLATES.get(name), SlotTemplate) and row.thinking
]
EMPTY = "<think>\n\n</think>\n\n"
QUESTION = {"role": "user", "content": "Who?"}
PLAIN = {"role": "assistant", "content": "Me."}
THOUGHT = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nMe."}
CALL = {"role": "function", "content": f"<think>\nCall.\n</think>\n\n{json.dumps({'name': 'f', 'arguments': {}})}"}
RESULT = {"role": "observation", "content": "1"}


def equip(name: str, enable: bool | None = True, preserve: bool = False) -> tuple[Any, Any]:
    tokenizer = make_toy_tokenizer()
    data_args = DataArguments(template=name, enable_thinking=enable, preserve_thinking=preserve)
    return tokenizer, get_template_and_fix_tokenizer(tokenizer, data_args)


def turns_of(name: str, messages: list[dict[str, str]], enable: bool | None = True, preserve: bool = False) -> Any:
    """Return (source, target) of every answer as text."""
    tokenizer, template = equip(name, enable, preserve)
    turns = template.encode_conversations(tokenizer, [as_conversation(messages)])[0].turns
    return [(tokenizer.decode(turn.source), tokenizer.decode(turn.target)) for turn in turns]


def test_history_loses_its_thoughts_and_the_last_answer_keeps_its_own() -> None:
    first, last = turns_of("qwen3", [QUESTION, THOUGHT, QUESTION, THOUGHT])

    assert first[1] == "Me.<|im_end|>"
    assert last[1] == "<think>\nHm.\n</think>\n\nMe.<|im_end|>"


def test_preserved_thoughts_stay() -> None:
    turns = turns_of("qwen3", [QUESTION, THOUGHT, QUESTION, THOUGHT], preserve=True)

    assert [target for _, target in turns] == ["<think>\nHm.\n</think>\n\nMe.<|im_end|>"] * 2


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5", "minimax2"])
def test_n20_an_active_tool_chain_keeps_its_thoughts(name: str) -> None:
    (_, old), (_, call), (_, last) = turns_of(name, [QUESTION, THOUGHT, QUESTION, CALL, RESULT, THOUGHT])

    assert "Hm." not in old
    assert call.startswith("<think>\nCall.\n</think>\n\n")
    assert last.startswith("<think>\nHm.\n</think>\n\nMe.")


def test_a_missing_thought_is_learned_when_the_model_is_to_think() -> None:
    ((source, target),) = turns_of("qwen3", [QUESTION, PLAIN])

    assert source.endswith("<|im_start|>assistant\n")
    assert target == f"{EMPTY}Me.<|im_end|>"


@pytest.mark.parametrize("enable", [False, None])
def test_n20_a_prefilled_empty_thought_is_not_learned(enable: bool | None) -> None:
    ((source, target),) = turns_of("qwen3", [QUESTION, PLAIN], enable)

    assert source.endswith(f"<|im_start|>assistant\n{EMPTY}")
    assert target == "Me.<|im_end|>"


def test_false_strips_every_thought_and_null_keeps_the_last() -> None:
    ((off_source, off_target),) = turns_of("qwen3", [QUESTION, THOUGHT], False)
    ((null_source, null_target),) = turns_of("qwen3", [QUESTION, THOUGHT], None)

    assert (off_source.endswith(EMPTY), off_target) == (True, "Me.<|im_end|>")
    assert (null_source.endswith("assistant\n"), null_target) == (True, f"{THOUGHT['content']}<|im_end|>")


@pytest.mark.parametrize("name", REASONING)
@pytest.mark.parametrize("enable", [True, False, None])
@pytest.mark.parametrize("preserve", [True, False])
def test_the_written_chat_template_treats_thoughts_alike(name: str, enable: bool | None, preserve: bool) -> None:
    tokenizer, template = equip(name, enable, preserve)
    chats = [
        [QUESTION, PLAIN],
        [QUESTION, THOUGHT, QUESTION, THOUGHT],
        [QUESTION, PLAIN, RESULT, THOUGHT],
        [QUESTION, THOUGHT, QUESTION, PLAIN, RESULT, RESULT, PLAIN],
        [QUESTION, THOUGHT, QUESTION],
        [QUESTION, THOUGHT, RESULT],
    ]

    for chat in chats:
        is_open = chat[-1] in (QUESTION, RESULT)
        pairs = template.encode_multiturn(tokenizer, chat)
        text = tokenizer.decode([number for pair in pairs for ids in pair for number in ids])
        assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=is_open) == text


@pytest.mark.parametrize("name", REASONING)
@pytest.mark.parametrize("enable", [True, False])
def test_n20_the_prompt_is_what_the_answer_was_trained_behind(name: str, enable: bool) -> None:
    tokenizer, template = equip(name, enable)

    for history in ([QUESTION], [QUESTION, THOUGHT, QUESTION], [QUESTION, PLAIN, RESULT]):
        prompt = template.encode_prompt(tokenizer, history)
        for answer in (PLAIN, THOUGHT):
            assert template.encode_oneturn(tokenizer, [*history, answer])[0] == prompt


def test_callers_of_the_saved_tokenizer_switch_thinking_themselves() -> None:
    tokenizer, _ = equip("qwen3")
    split = [QUESTION, {"role": "assistant", "content": "Me.", "reasoning_content": "Hm."}]

    def render(chat: list[dict[str, str]], **options: Any) -> str:
        return tokenizer.apply_chat_template(chat, tokenize=False, **options)

    assert render([QUESTION], add_generation_prompt=True, enable_thinking=False).endswith(f"assistant\n{EMPTY}")
    assert render(split) == render([QUESTION, THOUGHT])
    assert "Hm." in render([*split, QUESTION], preserve_thinking=True)
    assert "Hm." not in render([*split, QUESTION])


def test_thoughts_move_between_families() -> None:
    ((_, gemma),) = turns_of("gemma4", [QUESTION, THOUGHT])
    ((_, gpt_oss),) = turns_of("gpt_oss", [QUESTION, THOUGHT])
    ((_, bare),) = turns_of("gpt_oss", [QUESTION, PLAIN])

    assert gemma == "<|channel>thought\nHm.<channel|>Me.<turn|>"
    final = "<|channel|>final<|message|>Me."
    assert gpt_oss == f"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant{final}"
    assert bare == final


def test_a_thought_is_cut_out_exactly() -> None:
    thinking = Thinking(("<think>\n", "\n</think>\n\n"))

    assert thinking.split("<think>\na\n</think>\n\nb <think>c</think>") == ("a", "b <think>c</think>")
    assert thinking.split("no <think>thought</think>") == ("", "no <think>thought</think>")
    assert thinking.split("<think>open") == ("", "<think>open")


def test_the_switch_of_gemma_stands_only_when_it_is_on() -> None:
    ((on, _),) = turns_of("gemma4", [QUESTION, PLAIN])
    ((off, _),) = turns_of("gemma4", [QUESTION, PLAIN], False)

    assert "<|think|>" in on
    assert "<|think|>" not in off


def test_a_registry_entry_is_not_touched() -> None:
    before = TEMPLATES.get("qwen3")

    changed = before.with_thinking(False, True)

    assert TEMPLATES.get("qwen3") is before
    assert (before.enable_thinking, changed.enable_thinking, changed.preserve_thinking) == (True, False, True)
