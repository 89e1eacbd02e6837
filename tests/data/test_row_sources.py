import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafactory.data import json_rows
from llamafactory.data.json_rows import read_json_rows
from llamafactory.data.parser import DatasetAttr
from llamafactory.data.sources import open_source
from llamafactory.extras.errors import UserError


ROWS = [{"a": "one\ntwo", "b": "\u4f60\u597d"}, {"a": "three", "b": ""}]


def read(path: Path) -> list[dict[str, object]]:
    return [row.values for row in open_source(DatasetAttr("file", str(path))).read()]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_all_file_types_give_the_same_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import csv, parquet

    table = pa.Table.from_pylist(ROWS)
    write(tmp_path / "a.json", json.dumps(ROWS, indent=2))
    write(tmp_path / "a.jsonl", "\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    write(tmp_path / "b.json", "\ufeff" + "\n".join(json.dumps(row) for row in ROWS))
    csv.write_csv(table, tmp_path / "a.csv")
    parquet.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "c").mkdir()
    with pa.OSFile(str(tmp_path / "c" / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)

    for name in ("a.json", "a.jsonl", "b.json", "a.csv", "a.parquet", "a.arrow", "c"):
        assert read(tmp_path / name) == ROWS, name
    assert read(write(tmp_path / "a.txt", "one\n\n two \n")) == [{"text": "one"}, {"text": " two "}]


def test_numbers_in_a_csv_stay_text(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.csv", "instruction,output\n1+1,2\n,null\n")) == [
        {"instruction": "1+1", "output": "2"},
        {"instruction": "", "output": "null"},
    ]


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    for number in (3, 1, 2):
        write(tmp_path / f"part{number}.jsonl", json.dumps({"n": number}))
    write(tmp_path / "dataset_info.json", "{}")

    assert read(tmp_path) == [{"n": 1}, {"n": 2}, {"n": 3}]
    write(tmp_path / "x.csv", "a\n")
    with pytest.raises(UserError, match=r"files of one type of .*, not csv, jsonl"):
        read(tmp_path)


def test_the_keys_of_differing_objects_are_not_merged(tmp_path: Path) -> None:
    rows = [{"tools": [{"x": 1}]}, {"tools": [{"y": "2"}]}]

    assert read(write(tmp_path / "a.json", json.dumps(rows))) == rows


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '[\n{"a": 1},\n{"a": }\n]', "a.json, line 3: Expecting value; mend the JSON"),
        ("a.json", '[{"a": 1}\n{"a": 2}]', "a.json, line 2: a comma or the closing ] is missing"),
        ("a.json", '[{"a": 1},\n', "a.json, line 2: Expecting value"),
        ("a.json", '[{"a": 1}\n', "a.json, line 2: the file is cut off"),
        ("a.json", '[{"a": "1', "a.json, line 1: Unterminated string"),
        ("a.json", "[\n1]", "a.json, line 2: a row must be a JSON object, not 1"),
        ("a.jsonl", '{"a": 1}\n\n{"a": 1\n', "a.jsonl, line 3: Expecting ',' delimiter"),
        ("a.jsonl", '{"a": 1}\n["b"]', 'a.jsonl, line 2: a row must be a JSON object, not ["b"]'),
        ("a.json", "[]", "a.json holds no rows"),
        ("a.json", "", "a.json holds no rows"),
        ("a.txt", "\n", "a.txt holds no rows"),
        ("a.csv", "a,b\n1\n", "a.csv: CSV parse error: Row #2: Expected 2 columns, got 1"),
        ("a.parquet", "nothing", "a.parquet is not a Parquet file"),
        ("a.arrow", "nothing here at all", "a.arrow is not an Arrow file"),
    ],
)
def test_a_bad_file_is_one_sentence_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(write(tmp_path / name, text))

    assert message in str(caught.value)


def test_a_file_that_is_not_utf8_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes('[{"a": "\u00e9"}]'.encode("latin-1"))

    with pytest.raises(UserError, match=r"a\.json is not UTF-8 text"):
        read(tmp_path / "a.json")


def test_a_missing_file_and_an_unknown_type_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; check file_name and dataset_dir"):
        read(tmp_path / "missing.json")
    with pytest.raises(UserError, match="one type of arrow, csv, json, jsonl, parquet, txt, not xlsx"):
        read(write(tmp_path / "a.xlsx", "x"))


def test_an_origin_that_cannot_be_read_is_one_sentence() -> None:
    with pytest.raises(UserError, match="comes from ModelScope, which this version does not read"):
        open_source(DatasetAttr("ms_hub", "a/b"))


def test_a_hub_dataset_is_read_through_the_datasets_library(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    write(tmp_path / "repo" / "train.jsonl", "\n".join(json.dumps(row) for row in ROWS))
    attr = DatasetAttr("hf_hub", str(tmp_path / "repo"), name="mine")  # a folder stands in for a repository

    source = open_source(attr, cache_dir=str(tmp_path / "cache"))

    assert [(row.values, row.where) for row in source.read()] == [(ROWS[0], "mine, row 1"), (ROWS[1], "mine, row 2")]
    with pytest.raises(UserError, match="The dataset mine could not be loaded from the hub: Unknown split"):
        open_source(DatasetAttr("hf_hub", str(tmp_path / "repo"), name="mine", split="test"), str(tmp_path / "cache"))


@given(
    rows=st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=30) | st.integers(), max_size=3), min_size=1)
)
def test_a_file_read_in_small_pieces_gives_the_same_rows_and_lines(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.json"
    path.write_text("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]", encoding="utf-8")
    whole = list(read_json_rows(path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "CHUNK", 7)
        pieces = list(read_json_rows(path))

    assert pieces == whole == [(line, row) for line, row in enumerate(rows, 2)]


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", "[]")
    before = open_source(DatasetAttr("file", str(path))).digest

    assert open_source(DatasetAttr("file", str(path))).digest == before
    write(path, "[ ]")
    assert open_source(DatasetAttr("file", str(path))).digest != before
