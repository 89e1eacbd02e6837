"""Thought, text and calls of an answer, for every syntax, cut anywhere."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafactory.chat.answer_parts import AnswerParts, AnswerReader, Part, join_parts, read_answer
from llamafactory.chat.answer_syntax import AnswerSyntax, find_syntax, starts_in_thought
from llamafactory.data.slot_template import SlotTemplate
from llamafactory.data.template import TEMPLATES
from llamafactory.data.tools import TOOL_FORMATS, FunctionCall


CALLS = (
    FunctionCall("get_weather", '{"city": "Z\u00fcrich \U0001f642", "days": 3}'),
    FunctionCall("look_up", '{"text": "a </b> {c}", "deep": {"list": [1, null, true]}}'),
)
TOOLS = tuple({"name": call.name, "parameters": {"type": "object", "properties": {}}} for call in CALLS)
QWEN = "<tool_call>\n"


def syntax_of(name: str, tokenizer: Any) -> AnswerSyntax:
    template = TEMPLATES.get("chatml").with_tool_format(name)
    return find_syntax(template, tokenizer)


def read_in_pieces(syntax: AnswerSyntax, pieces: Sequence[str], **options: Any) -> tuple[AnswerParts, list[Part]]:
    reader = AnswerReader(syntax, TOOLS, **options)
    parts = [part for piece in pieces for part in reader.add(piece)]
    parts += reader.finish()
    return join_parts(parts), parts


def cut(text: str, places: Sequence[int]) -> list[str]:
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(bounds)]


@pytest.mark.parametrize("name", TOOL_FORMATS.names())
@pytest.mark.parametrize("num_calls", [1, 2])
@settings(max_examples=20, deadline=None)
@given(places=st.lists(st.integers(0, 400), max_size=30))
def test_calls_are_read_back_however_the_text_is_cut(
    tiny_tokenizer: Any, name: str, num_calls: int, places: list[int]
) -> None:
    calls = CALLS[:num_calls]
    syntax = syntax_of(name, tiny_tokenizer)
    text = TOOL_FORMATS.get(name).render_calls(calls, TOOLS)
    expected = tuple(TOOL_FORMATS.get(name).parse(text, TOOLS))

    whole, _ = read_in_pieces(syntax, cut(text, places))

    assert whole == AnswerParts("", "", expected)
    if len(expected) == num_calls:
        assert expected == calls


@pytest.mark.parametrize("name", TOOL_FORMATS.names())
@settings(max_examples=15, deadline=None)
@given(places=st.lists(st.integers(0, 400), max_size=30))
def test_a_stream_agrees_with_the_whole_answer(tiny_tokenizer: Any, name: str, places: list[int]) -> None:
    syntax = syntax_of(name, tiny_tokenizer)
    calls = TOOL_FORMATS.get(name).render_calls(CALLS[:1], TOOLS)
    for text in (
        f"Let me see. 1 < 2 {{x}}\n{calls}",
        f"{calls}\nDone?",
        f"{calls[:-3]}",
        "No [call] at all. <tool\n\n",
    ):
        whole = read_answer(syntax, text, TOOLS)

        assert read_in_pieces(syntax, cut(text, places))[0] == whole
        if not whole.calls:
            assert whole.text == text


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from(
            ["<think>", "</think>", "<tool_call>", "</tool_call>", '{"name": "a", "arguments": {}}', "\n", " x", "<"]
        ),
        max_size=12,
    ),
    places=st.lists(st.integers(0, 400), max_size=30),
)
def test_any_text_reads_the_same_cut_or_whole(tiny_tokenizer: Any, pieces: list[str], places: list[int]) -> None:
    syntax = find_syntax(TEMPLATES.get("qwen3"), tiny_tokenizer)
    text = "".join(pieces)

    assert read_in_pieces(syntax, cut(text, places))[0] == read_answer(syntax, text, TOOLS)


def test_parallel_calls_come_one_by_one_as_soon_as_each_is_complete(tiny_tokenizer: Any) -> None:
    syntax = syntax_of("qwen", tiny_tokenizer)
    one, two = (TOOL_FORMATS.get("qwen").render_calls([call]) for call in CALLS)
    reader = AnswerReader(syntax, TOOLS)

    assert reader.add("Sure.\n") == [Part("text", "Sure.")]
    assert reader.add(one) == [Part("call", call=CALLS[0])]
    assert reader.add(f"\n{two[:-2]}") == []
    assert reader.add(two[-2:]) == [Part("call", call=CALLS[1])]
    assert reader.finish() == []


def test_text_that_cannot_become_a_call_is_not_held_back(tiny_tokenizer: Any) -> None:
    reader = AnswerReader(syntax_of("qwen", tiny_tokenizer), TOOLS)

    assert reader.add("a <tool") == [Part("text", "a")]
    assert reader.add("box> b") == [Part("text", " <toolbox> b")]


def test_without_tools_a_call_is_text(tiny_tokenizer: Any) -> None:
    text = f'{QWEN}{{"name": "a", "arguments": {{}}}}\n</tool_call>\n'

    assert read_answer(syntax_of("qwen", tiny_tokenizer), text) == AnswerParts(text, "", ())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nwhy\n</think>\n\nso", AnswerParts("so", "why", ())),
        ("\n<think>why</think>so ", AnswerParts("so ", "why", ())),
        ("<think>\nwhy, then", AnswerParts("", "why, then", ())),
        ("<thin", AnswerParts("<thin", "", ())),
        ("so <think>not a thought</think>", AnswerParts("so <think>not a thought</think>", "", ())),
    ],
)
def test_thoughts(tiny_tokenizer: Any, text: str, expected: AnswerParts) -> None:
    syntax = find_syntax(TEMPLATES.get("qwen3"), tiny_tokenizer)

    assert read_answer(syntax, text) == expected
    assert read_in_pieces(syntax, list(text))[0].thought == expected.thought


def test_a_thought_that_the_prompt_opened(tiny_tokenizer: Any) -> None:
    syntax = find_syntax(TEMPLATES.get("qwen3"), tiny_tokenizer)
    opened = starts_in_thought(syntax, "<|im_start|>assistant\n<think>\n")

    assert opened is not None
    assert starts_in_thought(syntax, "<think>\n\n</think>\n\n") is None
    assert read_answer(syntax, "why\n</think>\n\nso", opened=opened) == AnswerParts("so", "why", ())


def test_the_models_own_template_tells_its_syntax(tiny_tokenizer_dir: Any) -> None:
    from transformers import AutoTokenizer

    from llamafactory.data.template import parse_template

    for name, tool_format in (("qwen3", "qwen"), ("llama3", "llama3"), ("mistral", "mistral")):
        tokenizer: Any = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
        named = TEMPLATES.get(name).fix_tokenizer(tokenizer)
        own = parse_template(tokenizer).fix_tokenizer(tokenizer)

        found = find_syntax(own, tokenizer)

        assert isinstance(named, SlotTemplate)
        assert found.tool_format is not None
        assert found.tool_format.parse(TOOL_FORMATS.get(tool_format).render_calls(CALLS)) == list(CALLS)
        assert bool(found.thought_marks) == (named.thinking is not None)


def test_marks_made_of_control_tokens_are_seen(tiny_tokenizer_dir: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool_call>", "<tool_call|>"]})
    syntax = find_syntax(TEMPLATES.get("chatml").with_tool_format("gemma4"), tokenizer)

    assert syntax.needs_control_tokens
    text = f"Fine.<|im_end|>{TOOL_FORMATS.get('gemma4').render_calls(CALLS[:1], TOOLS)}<|im_end|>"
    assert read_answer(syntax, text, TOOLS) == AnswerParts("Fine.", "", CALLS[:1])
    assert read_answer(syntax, "Fine.<|im_end|>") == AnswerParts("Fine.", "", ())
