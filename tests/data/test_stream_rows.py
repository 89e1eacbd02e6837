"""Streams of other shapes: packed rows, blocks of text, rows that nobody has counted, every kind of file."""

import gzip
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stream_tools import arguments, stream_batches, stream_order

from llamafactory.data.arrangement import arrange_rows
from llamafactory.data.hubs import LOADERS
from llamafactory.data.parser import DatasetAttr
from llamafactory.data.sources import FileSource, open_source
from llamafactory.data.stream_readers import StreamReader, Stride, Ticket
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.extras.errors import UserError
from llamafactory.train.batches import FILLER


Load = Callable[..., Any]
Write = Callable[[str, list[Any]], str]


def rows_of(num_rows: int) -> list[dict[str, str]]:
    return [{"instruction": f"{index}?", "output": f"{'yes ' * (index % 7)}{index}."} for index in range(num_rows)]


def documents_of(row: dict[str, Any]) -> list[tuple[int, ...]]:
    """The documents of a packed row."""
    starts = [place for place, position in enumerate(row["position_ids"]) if position == 0]
    bounds = zip(starts, [*starts[1:], len(row["input_ids"])], strict=True)
    return [tuple(row["input_ids"][start:end]) for start, end in bounds]


def packed(stream: Any, kind: str = "sft", cutoff_len: int = 96) -> Any:
    data_args: Any = type("Args", (), {"packing": True, "cutoff_len": cutoff_len})
    return arrange_rows(stream, kind, data_args)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_n12_packing_on_a_stream_loses_no_row_and_keeps_documents_apart(
    load: Load, write_rows: Write, num_workers: int
) -> None:
    path = write_rows("a.json", rows_of(40))
    prepared = load(path, cutoff_len=96)["train_dataset"]
    stream = packed(load(path, cutoff_len=96, streaming=True, buffer_size=20)["train_dataset"])
    stride = Stride(batch_size=1, num_ranks=2, num_workers=num_workers)
    reader = StreamReader(stream, stride, stream.shuffle(0, True), 10**6)

    expected = {tuple(row["input_ids"]): row["labels"] for row in prepared}
    seen: Counter[Any] = Counter()
    for lane in range(stride.num_lanes):
        num_own = 40 // stride.num_lanes  # of each epoch
        taken = 0
        for turn in range(1000):
            (row,) = reader.__getitems__([Ticket(0, turn * stride.num_lanes + lane)]).rows
            assert len(row["input_ids"]) <= 96
            documents = documents_of(row)
            seen.update(documents)
            taken += len(documents)
            start = 0
            for ids in documents:
                labels = row["labels"][start : start + len(ids)]
                assert labels == [IGNORE_INDEX, *expected[ids][1:]]
                start += len(ids)
            if taken == num_own:
                break
        assert taken == num_own
    assert seen == Counter(list(expected))


def test_packed_rows_of_a_stream_are_well_filled(load: Load, write_rows: Write, tmp_path: Path) -> None:
    stream = packed(
        load(write_rows("a.json", rows_of(200)), cutoff_len=256, streaming=True)["train_dataset"], "sft", 256
    )

    (batches,) = stream_batches(stream, arguments(tmp_path, max_steps=12), batch_size=2)
    lengths = [len(row["input_ids"]) for batch in batches for row in batch["rows"]]

    assert len(lengths) == 24
    assert sum(lengths) / (256 * len(lengths)) > 0.9


def test_n13_blocks_of_a_stream_are_its_texts_end_to_end(load: Load, write_rows: Write, tmp_path: Path) -> None:
    path = write_rows("a.json", rows_of(17))
    prepared = load(path)["train_dataset"]
    whole = [number for row in prepared for number in row["input_ids"]]
    stream = packed(replace(load(path, streaming=True, buffer_size=5)["train_dataset"], cutoff_len=16), "pt", 16)
    num_blocks = -(-len(whole) // 16)
    args = arguments(tmp_path, max_steps=num_blocks + 2, train_sampling_strategy="sequential")

    blocks = stream_order(stream, args, batch_size=1)

    assert [number for block in blocks[:num_blocks] for number in block] == whole
    assert {len(block) for block in blocks[: num_blocks - 1]} == {16}
    assert [number for block in blocks[num_blocks:] for number in block] == whole[:32]  # then it begins again


def test_a_packed_stream_says_that_it_needs_an_end(load: Load, write_rows: Write, tmp_path: Path) -> None:
    stream = packed(load(write_rows("a.json", rows_of(5)), streaming=True)["train_dataset"])

    with pytest.raises(UserError, match=r"with packing needs max_steps"):
        stream_order(stream, arguments(tmp_path))


def test_a_loader_that_starts_in_the_middle_gives_what_would_have_come(load: Load, write_rows: Write) -> None:
    path = write_rows("a.json", rows_of(40))
    for stream in (
        load(path, streaming=True, buffer_size=8)["train_dataset"],
        packed(load(path, cutoff_len=96, streaming=True, buffer_size=8)["train_dataset"]),
    ):
        stride = Stride(batch_size=2, num_ranks=2, num_workers=2)
        for lane in range(4):
            tickets = [Ticket(0, number) for number in range(lane, 20, 4)]
            whole = StreamReader(stream, stride, stream.shuffle(0, True), 20)
            later = StreamReader(stream, stride, stream.shuffle(0, True), 20)
            expected = [whole.__getitems__([ticket]).rows for ticket in tickets]
            assert [later.__getitems__([ticket]).rows for ticket in tickets[2:]] == expected[2:]


def test_a_stream_that_starts_in_the_middle_does_not_decode_what_came_before(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(row) for row in rows_of(60)]
    path.write_text("\n".join([*lines[:20], *["{broken"] * 10, *lines[30:]]), encoding="utf-8")
    stream = load(str(path), streaming=True, buffer_size=10, max_samples=60)["train_dataset"]
    reader = StreamReader(stream, Stride(2), stream.shuffle(0, True), 30)

    assert len(reader.__getitems__([Ticket(0, 15)]).rows) == 2
    with pytest.raises(UserError, match=r"a\.jsonl, line 21: .*mend the JSON"):
        reader.__getitems__([Ticket(0, 10)])


def uncounted(rows: list[Any]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows).to_iterable_dataset()


def test_a_hub_dataset_is_streamed_and_begins_again_at_its_end(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def load_rows(attr: Any, access: Any, streaming: bool) -> Any:
        asked.append(streaming)
        return uncounted(rows_of(10))

    monkeypatch.setattr("llamafactory.data.hubs.LOADERS", {**LOADERS, "hf_hub": load_rows})
    info = {"far": {"hf_hub_url": "org/name"}}
    with pytest.raises(UserError, match=r"streaming: true needs max_steps here, because the rows of far cannot be"):
        load("far", dataset_dir=info, streaming=True)
    with pytest.raises(UserError, match=r"val_size 0\.5 is a share of all rows"):
        load("far", dataset_dir=info, streaming=True, max_steps=3, val_size=0.5)

    module = load("far", dataset_dir=info, streaming=True, buffer_size=4, max_steps=8, val_size=2)
    rows = stream_order(module["train_dataset"], arguments(tmp_path, max_steps=8), num_ranks=2, batch_size=1)

    assert all(asked)
    held = {tuple(ids) for ids in module["eval_dataset"]["input_ids"]}
    assert len(held) >= 2
    assert len(rows) == 16
    num_left = 10 - len(held)
    assert len(set(rows[:num_left])) == num_left  # each once before any comes again
    assert set(rows[:num_left]) == set(rows[num_left : 2 * num_left])
    assert not held & set(rows)


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet", "arrow", "txt", "jsonl.gz"])
def test_every_kind_of_file_is_counted_and_can_be_entered_anywhere(tmp_path: Path, kind: str) -> None:
    import pyarrow as pa
    from pyarrow import csv, parquet

    rows = [{"text": f'line "{index}"'} for index in range(25)]
    table = pa.Table.from_pylist(rows)
    path = tmp_path / f"rows.{kind}"
    lines = "\n\n".join(json.dumps(row) for row in rows)
    if kind == "parquet":
        parquet.write_table(table, path, row_group_size=4)
    elif kind == "arrow":
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    elif kind == "csv":
        csv.write_csv(table, path)
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        text = {"json": json.dumps(rows), "jsonl": lines, "txt": "\n \n".join(row["text"] for row in rows)}[kind]
        path.write_text(text, encoding="utf-8")

    source = open_source(DatasetAttr("file", str(path)))
    whole = list(source.read())

    assert [row.values["text"] for row in whole] == [row["text"] for row in rows]
    assert source.num_rows == 25
    for start in (1, 4, 7, 24, 25):
        assert list(source.read(start)) == whole[start:]


def test_files_before_the_first_wanted_row_are_not_opened(tmp_path: Path) -> None:
    for index in range(3):
        text = "\n".join(json.dumps({"text": f"{index}-{row}"}) for row in range(5))
        (tmp_path / f"{index}.jsonl").write_text(text, encoding="utf-8")
    source = open_source(DatasetAttr("file", str(tmp_path)))
    assert isinstance(source, FileSource)
    assert source.counts == (5, 5, 5)
    (tmp_path / "0.jsonl").unlink()

    assert [row.values["text"] for row in source.read(7)][:2] == ["1-2", "1-3"]
    assert sum(1 for _ in source.read(10)) == 5


def test_ranks_with_nothing_left_get_a_filler(load: Load, write_rows: Write, tmp_path: Path) -> None:
    stream = load(write_rows("a.json", rows_of(5)), streaming=True)["train_dataset"]

    batches = stream_batches(stream, arguments(tmp_path), num_ranks=4, batch_size=1)

    assert [len(own) for own in batches] == [2, 2, 2, 2]
    assert [[bool(batch.get(FILLER)) for batch in own] for own in batches] == [[False, rank > 0] for rank in range(4)]


def test_rows_that_are_saved_cannot_be_streamed(load: Load, write_rows: Write, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenized_path '.*' keeps prepared rows, but streaming: true prepares none"):
        load(write_rows("a.json", rows_of(5)), streaming=True, tokenized_path=str(tmp_path / "kept"))


def test_ways_of_sharing_rows_out_that_a_stream_does_not_have_are_refused(
    load: Load, write_rows: Write, tmp_path: Path
) -> None:
    stream = load(write_rows("a.json", rows_of(5)), streaming=True)["train_dataset"]

    with pytest.raises(UserError, match=r"accelerator_config: dispatch_batches cannot go with streaming"):
        stream_order(stream, arguments(tmp_path, accelerator_config={"dispatch_batches": True}))
    with pytest.raises(UserError, match=r"train_sampling_strategy: group_by_length needs the lengths of all rows"):
        stream_order(stream, arguments(tmp_path, train_sampling_strategy="group_by_length"))
