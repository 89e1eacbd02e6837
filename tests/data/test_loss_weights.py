"""Messages whose loss counts more or less: from the row to the batch (N6)."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafactory.data import TEMPLATES
from llamafactory.data.batch import model_inputs
from llamafactory.data.collator import FlatCollator, PackedCollator, PaddingCollator
from llamafactory.data.conversation import as_conversation
from llamafactory.data.packing import PackedRows, join_documents
from llamafactory.data.processor import ProcessedRow, SupervisedDatasetProcessor
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.hparams import DataArguments


def turns(*losses: Any) -> list[dict[str, Any]]:
    words = iter(["one", "two", "three", "four", "five", "six", "seven", "eight"])
    return [
        turn
        for loss in losses
        for turn in (
            {"role": "user", "content": next(words)},
            {"role": "assistant", "content": next(words), "loss": loss},
        )
    ]


def row_of(tokenizer: Any, *losses: Any, template: str = "chatml", **options: Any) -> ProcessedRow:
    fitted = TEMPLATES.get(template).fix_tokenizer(tokenizer)
    processor = SupervisedDatasetProcessor(fitted, tokenizer, DataArguments(**options))
    (row,) = processor.process([as_conversation(turns(*losses))])
    assert isinstance(row, ProcessedRow)
    return row


def weighed_texts(tokenizer: Any, row: ProcessedRow) -> list[tuple[float, str]]:
    """The learned text of each weight."""
    assert row.weights is not None
    found: dict[float, list[int]] = {}
    for label, weight in zip(row.labels, row.weights, strict=True):
        assert (label == IGNORE_INDEX) == (weight == 0)
        if weight:
            found.setdefault(weight, []).append(label)
    return [(weight, tokenizer.decode(ids)) for weight, ids in found.items()]


def test_n6_each_answer_has_the_weight_of_its_message(tiny_tokenizer: Any) -> None:
    row = row_of(tiny_tokenizer, 0.3, None, 0, 2)

    assert weighed_texts(tiny_tokenizer, row) == [
        (0.3, "two<|im_end|>"),
        (1.0, "four<|im_end|>"),
        (2.0, "eight<|im_end|>"),
    ]
    assert row.num_supervised == sum(label != IGNORE_INDEX for label in row.labels)


def test_n6_rows_without_weights_of_their_own_carry_none(tiny_tokenizer: Any) -> None:
    assert row_of(tiny_tokenizer, None, True, False, 1.0).weights is None


def test_n6_the_settings_hold_where_a_message_says_nothing(tiny_tokenizer: Any) -> None:
    masked = row_of(tiny_tokenizer, 0.5, None, None, mask_history=True)
    assert weighed_texts(tiny_tokenizer, masked) == [(0.5, "two<|im_end|>"), (1.0, "six<|im_end|>")]

    prompts = row_of(tiny_tokenizer, 0.5, train_on_prompt=True)
    assert weighed_texts(tiny_tokenizer, prompts)[1] == (0.5, "two<|im_end|>")
    assert IGNORE_INDEX not in prompts.labels


def test_n6_an_end_token_weighs_as_much_as_its_answer(fresh_tokenizer: Callable[..., Any]) -> None:
    tokenizer = fresh_tokenizer()
    row = row_of(tokenizer, 0.5, 2.0, template="gemma2")

    weights = [
        weight for label, weight in zip(row.labels, row.weights or (), strict=True) if label == tokenizer.eos_token_id
    ]
    assert weights == [0.5, 2.0, 2.0]  # behind the first answer, behind the second, and at the end of the row


@settings(deadline=None, max_examples=40)
@given(losses=st.lists(st.sampled_from([None, True, 0.25, 2.0]), min_size=1, max_size=4), cutoff=st.integers(1, 60))
def test_n21_weights_stay_aligned_wherever_the_row_is_cut(tiny_tokenizer: Any, losses: list[Any], cutoff: int) -> None:
    processor = SupervisedDatasetProcessor(TEMPLATES.get("chatml"), tiny_tokenizer, DataArguments(cutoff_len=cutoff))
    (row,) = processor.process([as_conversation(turns(*losses))])

    if isinstance(row, ProcessedRow) and row.weights is not None:
        assert len(row.input_ids) == len(row.labels) == len(row.weights) <= cutoff
        assert all(
            (label == IGNORE_INDEX) == (weight == 0) for label, weight in zip(row.labels, row.weights, strict=True)
        )


DOCUMENTS = [
    {"input_ids": [5, 6, 7], "labels": [IGNORE_INDEX, 6, 7], "loss_weights": [0.0, 0.5, 0.25]},
    {"input_ids": [8, 9], "labels": [8, 9], "loss_weights": None},
    {"input_ids": [4, 3], "labels": [IGNORE_INDEX, 3]},
]


def weighed_labels(rows: list[Any]) -> Counter[tuple[int, float]]:
    pairs = [pair for row in rows for pair in zip(row["labels"], row["loss_weights"], strict=True)]
    return Counter((label, weight) for label, weight in pairs if label != IGNORE_INDEX)


def test_n12_packing_keeps_the_weight_of_each_label() -> None:
    packed = PackedRows(DOCUMENTS, 10)
    (row,) = [packed[index] for index in range(len(packed))]

    assert weighed_labels([row]) == Counter({(6, 0.5): 1, (7, 0.25): 1, (9, 1.0): 1, (3, 1.0): 1})
    assert all(weight == 0 for label, weight in zip(row["labels"], row["loss_weights"], strict=True) if label < 0)
    assert "loss_weights" not in join_documents(DOCUMENTS[1:])


@pytest.mark.parametrize("make", [PaddingCollator, PackedCollator, FlatCollator])
def test_batches_carry_weights_where_a_row_has_some(tiny_tokenizer: Any, make: Callable[..., Any]) -> None:
    batch = make(tiny_tokenizer, pad_to_multiple_of=8)(DOCUMENTS)

    weights = batch["loss_weights"]
    assert weights.dtype == torch.float32
    assert weights.shape == batch["labels"].shape
    is_predicted = torch.nn.functional.pad(batch["labels"][:, 1:] != IGNORE_INDEX, (1, 0))
    assert float((weights * is_predicted).sum()) == 0.5 + 0.25 + 1 + 1
    assert "loss_weights" not in model_inputs(batch)
    assert "loss_weights" not in make(tiny_tokenizer)(DOCUMENTS[1:])


def test_only_datasets_with_weights_have_the_column(load: Any, write_rows: Any) -> None:
    plain = [{"messages": turns(None)}] * 1500
    weighed = [*plain, {"messages": turns(0.5)}]  # behind the first batch of the preparation
    one, two = write_rows("plain.json", plain), write_rows("weighed.json", weighed)

    assert "loss_weights" not in load([one])["train_dataset"].column_names
    rows = load([two])["train_dataset"]
    assert rows[0]["loss_weights"] is None
    assert {weight for weight in rows[1500]["loss_weights"] if weight} == {0.5}
    mixed = load([one, two])["train_dataset"]
    assert [mixed[0]["loss_weights"], mixed[1500]["loss_weights"]] == [None, None]
    assert mixed[3000]["loss_weights"] == rows[1500]["loss_weights"]
    again = load([two])["train_dataset"]
    assert again[1500] == rows[1500]


def test_weights_survive_tokenized_path(load: Any, write_rows: Any, tmp_path: Any) -> None:
    path = write_rows("a.json", [{"messages": turns(0.5)}, {"messages": turns(None)}])

    first = load([path], tokenized_path=str(tmp_path / "saved"))["train_dataset"]
    second = load([path], tokenized_path=str(tmp_path / "saved"))["train_dataset"]

    assert first[0] == second[0]
    assert second[0]["loss_weights"] is not None
    assert second[1]["loss_weights"] is None


@pytest.mark.parametrize("strategy", ["interleave_under", "interleave_over", "interleave_once"])
def test_weights_survive_mixing(load: Any, write_rows: Any, strategy: str) -> None:
    paths = [
        write_rows("a.json", [{"messages": turns(None)}] * 3),
        write_rows("b.json", [{"messages": turns(0.5)}, {"messages": turns(None)}, {"messages": turns(0.5, 2)}]),
    ]

    rows = load(paths, mix_strategy=strategy)["train_dataset"]

    assert sum(row["loss_weights"] is not None for row in rows) == 2
