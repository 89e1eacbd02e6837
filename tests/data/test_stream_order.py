"""Rows that are streamed: the same as prepared ones, in the same order, each once, over all ranks and processes."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_tools import arguments, map_order, stream_batches, stream_order

from llamafactory.data.arrangement import arrange_rows
from llamafactory.extras.errors import UserError
from llamafactory.train.batches import FILLER
from llamafactory.train.stream_batches import COUNTS


Load = Callable[..., Any]
Write = Callable[[str, list[Any]], str]


def rows_of(num_rows: int, name: str = "q") -> list[dict[str, str]]:
    return [
        {"instruction": f"{name} {index}?", "output": f"{'yes ' * (index % 7)}{index}."} for index in range(num_rows)
    ]


def ids_of(rows: Any) -> list[tuple[int, ...]]:
    return [tuple(ids) for ids in rows["input_ids"]]


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("strategy", ["concat", "interleave_under", "interleave_over", "interleave_once"])
def test_a_stream_whose_buffer_holds_all_rows_has_the_order_of_prepared_rows(
    load: Load, write_rows: Write, tmp_path: Path, strategy: str, num_ranks: int
) -> None:
    names = f"{write_rows('a.json', rows_of(23))},{write_rows('b.json', rows_of(9, 'b'))}"
    args = arguments(tmp_path)
    prepared = load(names, mix_strategy=strategy)["train_dataset"]
    stream = load(names, mix_strategy=strategy, streaming=True)["train_dataset"]

    assert len(stream) == len(prepared)
    for epoch in (0, 1):
        assert stream_order(stream, args, num_ranks, epoch) == map_order(prepared, args, num_ranks, epoch)
    assert stream_order(stream, args, num_ranks, 0) != stream_order(stream, args, num_ranks, 1)


def test_n24_each_row_once_an_epoch_over_4_workers_and_2_ranks(load: Load, write_rows: Write, tmp_path: Path) -> None:
    path = write_rows("a.json", rows_of(41))
    args = arguments(tmp_path, dataloader_num_workers=4)
    prepared = load(path)["train_dataset"]
    rows = Counter(ids_of(prepared))
    stream = load(path, streaming=True, buffer_size=10)["train_dataset"]

    first, second = (stream_order(stream, args, 2, epoch, batch_size=3) for epoch in (0, 1))

    assert Counter(first) == Counter(second) == rows
    assert first != second
    assert first == stream_order(stream, arguments(tmp_path), 2, 0, batch_size=3)  # no matter how many processes load
    assert Counter(map_order(prepared, args, 2, 0, batch_size=3)) == rows


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 30), st.integers(1, 40), st.integers(1, 4)),
    num_ranks=st.integers(1, 3),
    epoch=st.integers(0, 2),
)
def test_any_cut_gives_each_row_once(
    tmp_path_factory: pytest.TempPathFactory,
    counted: Any,
    sizes: tuple[int, int, int],
    num_ranks: int,
    epoch: int,
) -> None:
    num_rows, buffer_size, batch_size = sizes
    args = arguments(tmp_path_factory.getbasetemp())
    stream, whole = counted(num_rows, buffer_size)

    batches = stream_batches(stream, args, num_ranks, epoch, batch_size)

    assert len({len(own) for own in batches}) == 1
    order = stream_order(stream, args, num_ranks, epoch, batch_size)
    assert Counter(order) == Counter(whole)
    if buffer_size >= num_rows:
        import numpy as np

        drawn = np.random.default_rng([42, epoch]).permutation(num_rows)
        assert order == [whole[index] for index in drawn]


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> Any:
    """A maker of (stream, its rows in file order), without a new file for each number of rows."""
    from transformers import AutoTokenizer

    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments, ModelArguments, TrainingArguments

    folder = tmp_path_factory.mktemp("counted")
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows_of(30)), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)

    def make(num_rows: int, buffer_size: int) -> Any:
        keys: dict[str, Any] = {"streaming": True, "buffer_size": buffer_size, "max_samples": num_rows}
        data_args = DataArguments(dataset=(str(path),), dataset_dir=str(folder), template="chatml", **keys)
        template = get_template_and_fix_tokenizer(tokenizer, data_args)
        model_args, training_args = ModelArguments(model_name_or_path="x"), TrainingArguments(output_dir="x")
        module = get_dataset(template, model_args, data_args, training_args, stage="sft", tokenizer=tokenizer)
        stream: Any = module["train_dataset"]
        whole = stream.encoder.encode(list(stream.mixture.read()))
        return stream, [tuple(outcome.row["input_ids"]) for outcome in whole]

    return make


def test_a_small_buffer_shuffles_within_itself_and_loses_nothing(
    load: Load, write_rows: Write, tmp_path: Path
) -> None:
    path = write_rows("a.json", rows_of(33))
    places = {ids: place for place, ids in enumerate(ids_of(load(path)["train_dataset"]))}
    stream = load(path, streaming=True, buffer_size=8)["train_dataset"]

    order = [places[ids] for ids in stream_order(stream, arguments(tmp_path))]

    assert sorted(order) == list(range(33))
    assert order != sorted(order)
    assert [sorted(order[start : start + 8]) for start in (0, 8, 16)] == [
        list(range(start, start + 8)) for start in (0, 8, 16)
    ]
    assert sorted(order[24:]) == list(range(24, 33))  # the last row joins the window before it


def test_rows_that_cannot_be_used_leave_their_batches_smaller(load: Load, write_rows: Write, tmp_path: Path) -> None:
    rows: list[Any] = rows_of(20)
    for index in (0, 1, 2, 3, 11):
        rows[index]["output"] = ""
    path = write_rows("a.json", rows)
    kept = ids_of(load(path)["train_dataset"])
    stream = load(path, streaming=True)["train_dataset"]
    args = arguments(tmp_path, train_sampling_strategy="sequential")

    (batches,) = stream_batches(stream, args)
    for batch in batches:
        stream.count(batch[COUNTS].counts)

    assert [len(batch["rows"]) for batch in batches if FILLER not in batch] == [2, 2, 2, 1, 2, 2, 2, 2]
    assert sum(FILLER in batch for batch in batches) == 2
    assert stream_order(stream, args) == kept
    (report,) = stream.reports
    assert (report.num_read, report.num_kept, dict(report.dropped)) == (20, 15, {"no answer at the end": 5})
    assert "row 1 (line 1)" in report.examples["no answer at the end"]


def test_a_stream_without_a_usable_row_ends_with_the_reason(load: Load, write_rows: Write, tmp_path: Path) -> None:
    rows = [{"instruction": f"{index}?", "output": ""} for index in range(5)]
    stream = load(write_rows("a.json", rows), streaming=True)["train_dataset"]

    with pytest.raises(UserError, match=r"No streamed row can be used: no answer at the end \(first: .*a\.json, row"):
        stream_order(stream, arguments(tmp_path))


def test_a_bad_row_is_named_from_a_worker_process_too(load: Load, write_rows: Write, tmp_path: Path) -> None:
    rows: list[Any] = rows_of(20)
    rows[17]["output"] = ["not", "text"]
    stream = load(write_rows("a.json", rows), streaming=True)["train_dataset"]

    for num_workers in (0, 1):
        with pytest.raises(UserError) as caught:
            stream_order(stream, arguments(tmp_path, dataloader_num_workers=num_workers))
        assert "\n" not in str(caught.value)
        assert "a.json, row 18 (line 1): field 'output'" in str(caught.value)


@pytest.mark.parametrize("options", [{"num_samples": 7}, {"num_samples": 25}, {"weight": 2.5}, {"weight": 0.3}])
@pytest.mark.parametrize("strategy", ["concat", "interleave_under", "interleave_over", "interleave_once"])
def test_amounts_give_the_rows_that_prepared_data_gives(
    load: Load, write_rows: Write, tmp_path: Path, options: dict[str, Any], strategy: str
) -> None:
    info = {
        "a": {"file_name": write_rows("a.json", rows_of(10)), **options},
        "b": {"file_name": write_rows("b.json", rows_of(4, "b"))},
    }
    args = arguments(tmp_path)
    keys: dict[str, Any] = {"dataset_dir": info, "mix_strategy": strategy}
    prepared = load("a,b", **keys)["train_dataset"]
    stream = load("a,b", **keys, streaming=True)["train_dataset"]

    assert stream_order(stream, args) == map_order(prepared, args)


def test_chances_draw_as_they_do_for_prepared_data(load: Load, write_rows: Write, tmp_path: Path) -> None:
    names = f"{write_rows('a.json', rows_of(50))},{write_rows('b.json', rows_of(40, 'b'))}"
    args = arguments(tmp_path, train_sampling_strategy="sequential")
    for strategy in ("interleave_under", "interleave_over", "interleave_once"):
        keys: dict[str, Any] = {"mix_strategy": strategy, "interleave_probs": (0.8, 0.2)}
        prepared = load(names, **keys)["train_dataset"]
        stream = load(names, **keys, streaming=True, buffer_size=8)["train_dataset"]
        assert stream_order(stream, args) == ids_of(prepared)


@pytest.mark.parametrize("strategy", ["concat", "interleave_over"])
def test_an_order_can_be_entered_anywhere(load: Load, write_rows: Write, strategy: str) -> None:
    info = {
        "a": {"file_name": write_rows("a.json", rows_of(10)), "num_samples": 26},
        "b": {"file_name": write_rows("b.json", rows_of(4, "b"))},
    }
    mixture = load("a,b", dataset_dir=info, mix_strategy=strategy, streaming=True, val_size=3)["train_dataset"].mixture
    whole = list(mixture.read())

    assert len(whole) == mixture.num_rows
    for start in range(len(whole) + 1):
        assert list(mixture.read(start)) == whole[start:]


@pytest.mark.parametrize("val_size", [5, 0.2])
def test_n23_the_rows_held_out_of_a_stream_are_those_held_out_of_prepared_data(
    load: Load, write_rows: Write, tmp_path: Path, val_size: float
) -> None:
    rows = rows_of(30)
    path = write_rows("a.json", [*rows, rows[3], rows[4]])
    prepared = load(path, val_size=val_size)
    stream = load(path, val_size=val_size, streaming=True)

    assert sorted(ids_of(stream["eval_dataset"])) == sorted(ids_of(prepared["eval_dataset"]))
    streamed = stream_order(stream["train_dataset"], arguments(tmp_path))
    assert Counter(streamed) == Counter(ids_of(prepared["train_dataset"]))
    assert not set(streamed) & set(ids_of(stream["eval_dataset"]))
    assert len(stream["train_dataset"]) == len(prepared["train_dataset"])


def test_kto_on_a_stream_compares_with_another_row_of_the_buffer(
    load: Load, write_rows: Write, tmp_path: Path
) -> None:
    path = write_rows("a.json", rows_of(9))
    data_args: Any = type("Args", (), {"packing": False, "cutoff_len": 64})
    prepared = load(path)["train_dataset"]
    stream = arrange_rows(load(path, streaming=True, buffer_size=4)["train_dataset"], "kto", data_args)
    paired = arrange_rows(prepared, "kto", data_args)

    (batches,) = stream_batches(stream, arguments(tmp_path), batch_size=3)
    rows = [row for batch in batches for row in batch["rows"]]

    assert Counter(tuple(row["input_ids"]) for row in rows) == Counter(ids_of(prepared))
    assert all(row["kl_input_ids"] != row["input_ids"] for row in rows)
    same = arrange_rows(load(path, streaming=True)["train_dataset"], "kto", data_args)
    (whole,) = stream_batches(same, arguments(tmp_path), batch_size=3)
    expected = {tuple(row["input_ids"]): row["kl_input_ids"] for row in (paired[index] for index in range(9))}
    assert {tuple(row["input_ids"]): row["kl_input_ids"] for batch in whole for row in batch["rows"]} == expected
