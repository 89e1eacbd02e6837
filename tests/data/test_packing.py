"""Packing: rows N11 and N12 of the correctness list, and how full the rows get."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafactory.data.batch import document_bounds, document_numbers, model_inputs
from llamafactory.data.collator import FlatCollator, MaskedCollator, PackedCollator, prepare_4d_attention_mask
from llamafactory.data.packing import PackedRows, join_documents, pack_lengths
from llamafactory.extras.constants import IGNORE_INDEX


LENGTHS = st.lists(st.integers(1, 40), max_size=80)


def make_documents(lengths: list[int], seed: int = 0) -> list[dict[str, list[int]]]:
    """Documents whose labels are partly masked; some learn their first token too, as with train_on_prompt."""
    generator = np.random.default_rng(seed)
    documents: list[dict[str, list[int]]] = []
    for length in lengths:
        ids = generator.integers(3, 300, length).tolist()
        is_learned = generator.random(length) < 0.6
        labels = [number if learned else IGNORE_INDEX for number, learned in zip(ids, is_learned, strict=True)]
        documents.append({"input_ids": ids, "labels": labels})
    return documents


def split_row(row: Any) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The documents of a packed row, by its positions alone."""
    starts = [place for place, position in enumerate(row["position_ids"]) if position == 0]
    pieces = [slice(start, end) for start, end in zip(starts, [*starts[1:], len(row["position_ids"])], strict=True)]
    return [(tuple(row["input_ids"][piece]), tuple(row["labels"][piece])) for piece in pieces]


@settings(deadline=None)
@given(lengths=LENGTHS, capacity=st.integers(40, 100), seed=st.integers(0, 3))
def test_n12_every_document_is_packed_once_and_no_row_overflows(lengths: list[int], capacity: int, seed: int) -> None:
    rows = pack_lengths(lengths, capacity, seed)

    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= capacity for row in rows)
    half_empty = [row for row in rows if 2 * sum(lengths[index] for index in row) <= capacity]
    assert len(half_empty) <= 1  # two of them would have gone together


@settings(deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 3))
def test_n12_the_multiset_of_packed_documents_is_that_of_the_documents(lengths: list[int], seed: int) -> None:
    documents = make_documents(lengths)

    packed = PackedRows(documents, 64, seed)

    found = Counter(document for row in map(packed.__getitem__, range(len(packed))) for document in split_row(row))
    assert found == Counter((tuple(item["input_ids"]), (IGNORE_INDEX, *item["labels"][1:])) for item in documents)


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_n11_the_first_token_of_a_document_is_no_target_and_weights_stay_equal(lengths: list[int]) -> None:
    documents = make_documents(lengths)

    row = join_documents(documents)

    assert all(row["labels"][place] == IGNORE_INDEX for place, start in enumerate(row["position_ids"]) if start == 0)
    separate = sum(label != IGNORE_INDEX for item in documents for label in item["labels"][1:])
    assert sum(label != IGNORE_INDEX for label in row["labels"][1:]) == separate
    assert row["position_ids"] == [place for length in lengths for place in range(length)]
    assert join_documents([row]) == row


def test_packing_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 300)

    assert pack_lengths(lengths, 128, 1) == pack_lengths(lengths, 128, 1)
    assert pack_lengths(lengths, 128, 1) != pack_lengths(lengths, 128, 2)


def test_n12_a_document_longer_than_a_row_is_an_error_not_a_loss() -> None:
    with pytest.raises(ValueError, match="rows of 8"):
        pack_lengths([3, 9], 8)


def test_packing_the_whole_epoch_is_fast_and_leaves_almost_nothing_empty() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5.5, 1, 200_000).astype(int), 1, 2048)

    start = time.perf_counter()
    rows = pack_lengths(lengths, 2048)
    seconds = time.perf_counter() - start

    assert seconds < 5  # 0.2 s on a laptop
    assert lengths.sum() / (2048 * len(rows)) > 0.999


def test_rows_of_an_arrow_dataset_are_packed_without_reading_their_ids() -> None:
    from datasets import Dataset

    documents = make_documents([5, 3, 9, 4, 4, 1])
    dataset = Dataset.from_list(documents)
    reordered = dataset.select([5, 3, 1, 0, 2, 4])

    packed = PackedRows(dataset, 10)

    assert [packed[index] for index in range(len(packed))] == [
        PackedRows(documents, 10)[index] for index in range(len(packed))
    ]
    assert PackedRows(reordered, 10).num_tokens == packed.num_tokens == 26
    assert packed.efficiency == pytest.approx(26 / 30)
    with pytest.raises(IndexError):
        packed[len(packed)]


def test_the_bounds_of_documents_follow_from_the_positions(tiny_tokenizer: Any) -> None:
    documents = make_documents([3, 2, 4])

    flat = FlatCollator(tiny_tokenizer)(documents)
    two_rows = PackedCollator(tiny_tokenizer)([join_documents(documents[:2]), documents[2]])

    assert flat["input_ids"].shape == (1, 9)
    assert document_bounds(flat["position_ids"]).tolist() == [0, 3, 5, 9]
    assert document_numbers(flat["position_ids"]).tolist() == [[1, 1, 1, 2, 2, 3, 3, 3, 3]]
    assert two_rows["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]]  # padding is a document too
    assert two_rows["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert two_rows["labels"][1, -1] == IGNORE_INDEX
    assert set(model_inputs(two_rows)) == {"input_ids", "position_ids"}


@pytest.mark.parametrize("make", [PackedCollator, FlatCollator])
def test_packed_batches_can_be_padded_to_a_multiple(tiny_tokenizer: Any, make: Callable[..., Any]) -> None:
    batch = make(tiny_tokenizer, 8)(make_documents([3, 2]))

    assert {batch[name].shape[1] for name in ("input_ids", "labels", "attention_mask", "position_ids")} == {8}
    assert int(batch["attention_mask"].sum()) == 5
    assert batch["input_ids"][batch["attention_mask"] == 0].unique().tolist() == [tiny_tokenizer.pad_token_id]


def test_a_mask_that_is_added_lets_tokens_look_back_within_their_document_only(tiny_tokenizer: Any) -> None:
    numbers = torch.tensor([[1, 1, 2, 2, 0]])

    mask = prepare_4d_attention_mask(numbers, torch.float32)

    assert mask.shape == (1, 1, 5, 5)
    assert (mask[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0],
    ]
    assert mask.min() == torch.finfo(torch.float32).min
    batch = MaskedCollator(tiny_tokenizer, torch.float32, pad_to_multiple_of=4)(
        [join_documents(make_documents([3, 2]))]
    )
    assert batch["attention_mask"].shape == (1, 1, 8, 8)
    assert "attention_mask" in model_inputs(batch)
