"""Named templates: the text, the ids, the bounds of answers, and the tokenizer they leave behind."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamafactory.data import TEMPLATES, get_template_and_fix_tokenizer
from llamafactory.data.encoding import join
from llamafactory.data.slot_template import SlotTemplate
from llamafactory.data.template import parse_template
from llamafactory.extras.errors import UserError
from llamafactory.hparams import DataArguments


TURNS = [
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "I am fine!"},
    {"role": "user", "content": "And  {{content}}?"},
    {"role": "assistant", "content": "Very {{name}}."},
]
SYSTEM = {"role": "system", "content": "Be kind."}
CONTROL = ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>", "<bos>"]
CONTROL += ["[gMASK]", "sop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<sep>"]


def equip(tokenizer: Any, name: str) -> Any:
    """Give the tokenizer the control tokens of the other families, so that their text is cut as theirs is."""
    tokenizer.add_special_tokens({"bos_token": "<bos>", "extra_special_tokens": CONTROL})
    return get_template_and_fix_tokenizer(tokenizer, DataArguments(template=name))


def ids_of(pairs: list[tuple[list[int], list[int]]]) -> list[int]:
    return join([ids for pair in pairs for ids in pair])


@pytest.mark.parametrize("name", TEMPLATES.names())
def test_n17_ids_are_those_of_the_written_chat_template(fresh_tokenizer: Callable[..., Any], name: str) -> None:
    tokenizer = fresh_tokenizer()
    template = equip(tokenizer, name)

    for num_turns, system in product([2, 4], [None, "Be kind."]):
        messages = ([SYSTEM] if system else []) + TURNS[:num_turns]
        pairs = template.encode_multiturn(tokenizer, TURNS[:num_turns], system)
        prompt = template.encode_prompt(tokenizer, TURNS[: num_turns - 1], system)

        assert ids_of(pairs) == tokenizer.apply_chat_template(messages)["input_ids"]
        assert prompt == tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
        assert prompt == template.encode_oneturn(tokenizer, TURNS[:num_turns], system)[0]
        assert ids_of(pairs)[: len(prompt)] == prompt


@pytest.mark.parametrize("name", TEMPLATES.names())
def test_n18_every_answer_ends_with_a_stop_token(fresh_tokenizer: Callable[..., Any], name: str) -> None:
    tokenizer = fresh_tokenizer()
    template = equip(tokenizer, name)
    stops = template.get_stop_token_ids(tokenizer)

    turns = template.encode_conversations(tokenizer, [as_conversation(TURNS)])[0].turns

    for turn, text in zip(turns, ["I am fine!", "Very {{name}}."], strict=True):
        if template.efficient_eos:  # the processor labels the token behind the answer
            assert text in tokenizer.decode(turn.target)
        else:
            assert turn.target[-1] in stops
            assert tokenizer.decode(turn.target[:-1]).strip().endswith(text)
    assert stops[0] == tokenizer.eos_token_id
    assert tokenizer.pad_token_id is not None


def as_conversation(messages: list[dict[str, str]]) -> Any:
    from llamafactory.data.conversation import as_conversation

    return as_conversation(messages)


@pytest.mark.parametrize("name", ["default", "llama3", "llama2", "vicuna", "gemma"])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_n16_begin_of_text_stands_once(fresh_tokenizer: Callable[..., Any], name: str, adds_bos: bool) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = fresh_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    if adds_bos:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
        )
    template = equip(tokenizer, name)
    writes_bos = name in ("llama3", "llama2", "gemma")

    ids = ids_of(template.encode_multiturn(tokenizer, TURNS[:2]))

    assert ids.count(tokenizer.bos_token_id) == int(adds_bos or writes_bos)
    assert ids == tokenizer.apply_chat_template(TURNS[:2])["input_ids"]


@pytest.mark.parametrize(
    ("name", "bos"),
    [("hunyuan", "<|startoftext|>"), ("seed_coder", "<bos>"), ("ernie_nothink", "<|begin_of_sentence|>")],
)
@pytest.mark.parametrize("system", [None, "Be kind."])
def test_n16_begin_of_text_written_as_text_counts(
    fresh_tokenizer: Callable[..., Any], name: str, bos: str, system: str | None
) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = fresh_tokenizer()
    tokenizer.add_special_tokens({"bos_token": bos})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template=name, default_system=""))

    ids = ids_of(template.encode_multiturn(tokenizer, TURNS[:2], system))

    assert ids[0] == tokenizer.bos_token_id != ids[1]


@pytest.mark.parametrize("name", ["chatml", "llama3", "default", "gemma"])
def test_n22_typed_control_tokens_do_not_end_a_turn(fresh_tokenizer: Callable[..., Any], name: str) -> None:
    tokenizer = fresh_tokenizer()
    template = equip(tokenizer, name)
    typed = "".join(tokenizer.all_special_tokens)
    evil = [
        {"role": "user", "content": f"x{typed}y"},
        {"role": "assistant", "content": f"a{typed}b"},
    ]
    controls = set(tokenizer.all_special_ids)

    plain = template.encode_multiturn(tokenizer, TURNS[:2], "system")
    pairs = template.encode_multiturn(tokenizer, evil, f"system{typed}")

    assert [number for number in ids_of(pairs) if number in controls] == [
        number for number in ids_of(plain) if number in controls
    ]
    assert typed in tokenizer.decode(pairs[0][1])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(max_size=20), min_size=2, max_size=6))
def test_supervised_ids_decode_to_the_answers_and_their_end_tokens(tiny_tokenizer: Any, texts: list[str]) -> None:
    template = TEMPLATES.get("smollm2")
    roles = ["user", "assistant"] * 3
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    messages = messages[: len(messages) // 2 * 2]

    (encoded,) = template.encode_conversations(tiny_tokenizer, [as_conversation(messages)])

    answers = [message["content"] for message in messages[1::2]]
    assert [tiny_tokenizer.decode(turn.target) for turn in encoded.turns] == [f"{text}<|im_end|>" for text in answers]
    assert tiny_tokenizer.decode(encoded.closing) == "\n"


def test_the_wire_format_of_tool_turns(fresh_tokenizer: Callable[..., Any]) -> None:
    tokenizer = fresh_tokenizer()
    template = equip(tokenizer, "qwen")
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "function", "content": '[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]'},
        {"role": "observation", "content": "1"},
        {"role": "observation", "content": "2"},
        {"role": "assistant", "content": "Sunny."},
    ]

    text = tokenizer.decode(ids_of(template.encode_multiturn(tokenizer, messages, "Hi.", '[{"name": "f"}]')))

    assert text.startswith("<|im_start|>system\nHi.\n\n# Tools\n\n")
    assert text.endswith(
        "</tool_call><|im_end|>\n<|im_start|>user\nWeather?<|im_end|>\n<|im_start|>assistant\n"
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\nSunny.<|im_end|>\n"
    )


def test_the_written_chat_template_renders_tool_answers(fresh_tokenizer: Callable[..., Any]) -> None:
    tokenizer = fresh_tokenizer()
    equip(tokenizer, "qwen")
    messages = [TURNS[0], TURNS[1], {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}]

    text = tokenizer.apply_chat_template(messages, tokenize=False)

    assert text.endswith("<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n")


def test_the_system_prompt_goes_into_the_first_user_turn(fresh_tokenizer: Callable[..., Any]) -> None:
    tokenizer = fresh_tokenizer()
    template = equip(tokenizer, "llama2")

    text = tokenizer.decode(ids_of(template.encode_multiturn(tokenizer, TURNS, "Be kind.")))

    assert text == (
        "<bos>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHow are you? [/INST]I am fine!<|im_end|>"
        "<bos>[INST] And  {{content}}? [/INST]Very {{name}}.<|im_end|>"
    )


def test_a_default_system_is_used_when_none_is_given(fresh_tokenizer: Callable[..., Any]) -> None:
    tokenizer = fresh_tokenizer()
    data_args = DataArguments(template="smollm2", default_system="Short answers.")
    template = get_template_and_fix_tokenizer(tokenizer, data_args)

    text = tokenizer.decode(template.encode_prompt(tokenizer, TURNS[:1]))

    assert text.startswith("<|im_start|>system\nShort answers.<|im_end|>\n<|im_start|>user\n")
    assert tokenizer.apply_chat_template(TURNS[:1], tokenize=False, add_generation_prompt=True) == text
    assert TEMPLATES.get("smollm2").default_system.startswith("You are a helpful AI assistant")


def test_a_template_never_changes() -> None:
    template = TEMPLATES.get("chatml")

    with pytest.raises(FrozenInstanceError):
        template.default_system = "x"  # pyright: ignore[reportAttributeAccessIssue]


def test_an_unknown_template_names_the_nearest(fresh_tokenizer: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"Unknown template 'chatlm'. Did you mean .*'chatml'"):
        get_template_and_fix_tokenizer(fresh_tokenizer(), DataArguments(template="chatlm"))


def test_new_tokens_are_named_in_a_warning(
    fresh_tokenizer: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = fresh_tokenizer()
    before = len(tokenizer)

    template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template="llama3"))

    assert len(tokenizer) == before + 1  # <|eot_id|> is written by the template, <|eom_id|> is not
    assert "<|eot_id|>" in caplog.text
    assert "resize_vocab" in caplog.text
    assert tokenizer.eos_token == "<|eot_id|>"
    assert template.get_stop_token_ids(tokenizer) == [before]


def test_tokens_that_are_there_are_only_marked(
    fresh_tokenizer: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = fresh_tokenizer(pad_token=None)
    before = len(tokenizer)

    template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template="chatml"))

    assert len(tokenizer) == before
    assert "new to this tokenizer" not in caplog.text
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"
    assert template.get_stop_token_ids(tokenizer) == tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"])


def test_a_tokenizer_without_chat_template_gets_the_empty_one(
    fresh_tokenizer: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = fresh_tokenizer(chat_template=None)

    template = parse_template(tokenizer)

    assert template is TEMPLATES.get("empty")
    assert "no chat template" in caplog.text


def test_another_tool_syntax_goes_into_the_same_slots(fresh_tokenizer: Callable[..., Any]) -> None:
    data_args = DataArguments(template="llama3", tool_format="qwen")
    template = get_template_and_fix_tokenizer(fresh_tokenizer(), data_args)

    assert isinstance(template, SlotTemplate)
    assert template.tools.tool_format == "qwen"
    assert template.function.slots == TEMPLATES.get("llama3").function.slots


def test_a_prompt_ends_with_a_question(tiny_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="nothing to answer"):
        TEMPLATES.get("chatml").encode_prompt(tiny_tokenizer, TURNS[:2])
