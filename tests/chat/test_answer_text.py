"""Streamed text: whole characters only, no stop text, and the same string as decoding everything at once."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafactory.chat.answer_text import AnswerText


MIXED = (
    "\u65e5\u672c\u8a9e\u3068 \U0001f642\U0001f44d\U0001f3fd na\u00efve \u0440\u0443\u0441\u0441\u043a\u0438\u0439 "
)
TEXTS = ["plain words, one after another. " * 12, MIXED * 6, " leading and trailing "]


def pieces(tokenizer: Any, ids: list[int], stop: list[str] | None = None, stop_ids: tuple[int, ...] = ()) -> list[str]:
    answer = AnswerText(tokenizer, stop_ids, stop or [])
    return [*[answer.add(token) for token in ids], answer.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_no_piece_holds_half_a_character(tiny_tokenizer: Any, text: str) -> None:
    ids = tiny_tokenizer(text).input_ids

    parts = pieces(tiny_tokenizer, ids)

    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts)
    assert len([part for part in parts if part]) > len(text) // 12  # it really streams


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(0, 500), max_size=120))
def test_any_ids_give_what_decoding_at_once_gives(tiny_tokenizer: Any, ids: list[int]) -> None:
    expected = tiny_tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    assert "".join(pieces(tiny_tokenizer, ids)) == expected


def test_a_stop_text_ends_the_answer_and_is_never_shown(tiny_tokenizer: Any) -> None:
    ids = tiny_tokenizer("one two STOP three").input_ids
    answer = AnswerText(tiny_tokenizer, (), ["never", "STOP"])

    parts = [answer.add(token) for token in ids]

    assert "".join(parts) + answer.finish() == "one two "
    assert answer.is_stopped
    assert not any("S" in part for part in parts)


def test_what_only_begins_like_a_stop_text_is_shown_in_the_end(tiny_tokenizer: Any) -> None:
    ids = tiny_tokenizer("one two STO").input_ids
    answer = AnswerText(tiny_tokenizer, (), ["STOP"])

    shown = "".join(answer.add(token) for token in ids)

    assert shown == "one two "
    assert shown + answer.finish() == "one two STO"
    assert answer.finish_reason == "length"


def test_a_stop_id_ends_the_answer(tiny_tokenizer: Any) -> None:
    stop_id = tiny_tokenizer.eos_token_id
    ids = [*tiny_tokenizer("one two").input_ids, stop_id, *tiny_tokenizer(" three").input_ids]
    answer = AnswerText(tiny_tokenizer, [stop_id])

    text = "".join(answer.add(token) for token in ids) + answer.finish()

    assert (text, answer.finish_reason) == ("one two", "stop")
    assert answer.num_tokens == len(tiny_tokenizer("one two").input_ids) + 1
