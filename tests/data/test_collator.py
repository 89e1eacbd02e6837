from collections.abc import Callable
from typing import Any

import torch

from llamafactory.data import PaddingCollator


ROWS = [
    {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": [-100, 6, 7]},
    {"input_ids": [8], "attention_mask": [1], "labels": [8]},
]


def test_n18_padding_is_told_by_length_when_the_pad_token_is_the_end_token(
    fresh_tokenizer: Callable[..., Any],
) -> None:
    tokenizer = fresh_tokenizer(pad_token="<|im_end|>")
    end = tokenizer.eos_token_id
    rows = [{"input_ids": [5, end], "labels": [5, end]}, {"input_ids": [end], "labels": [end]}]

    batch = PaddingCollator(tokenizer)(rows)

    assert batch["input_ids"].tolist() == [[5, end], [end, end]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [[5, end], [end, -100]]


def test_rows_are_padded_to_a_multiple(tiny_tokenizer: Any) -> None:
    pad = tiny_tokenizer.pad_token_id

    batch = PaddingCollator(tiny_tokenizer, pad_to_multiple_of=4)(ROWS)

    assert batch["input_ids"].tolist() == [[5, 6, 7, pad], [8, pad, pad, pad]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100], [8, -100, -100, -100]]
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_prompts_are_padded_on_the_left_and_answers_have_their_own_length(tiny_tokenizer: Any) -> None:
    pad = tiny_tokenizer.pad_token_id
    rows = [{"input_ids": [5, 6, 7], "labels": [1]}, {"input_ids": [8], "labels": [2, 3, 4, 5]}]

    batch = PaddingCollator(tiny_tokenizer, padding_side="left")(rows)

    assert batch["input_ids"].tolist() == [[5, 6, 7], [pad, pad, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 1], [2, 3, 4, 5]]


def test_labels_may_be_padded_with_the_pad_token_or_be_missing(tiny_tokenizer: Any) -> None:
    pad = tiny_tokenizer.pad_token_id

    assert PaddingCollator(tiny_tokenizer, label_pad=pad)(ROWS)["labels"].tolist() == [[-100, 6, 7], [8, pad, pad]]
    assert set(PaddingCollator(tiny_tokenizer)([{"input_ids": [1]}])) == {"input_ids", "attention_mask"}
