import gzip
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafactory.data import json_rows
from llamafactory.data.data_files import DataFile
from llamafactory.data.hubs import Access
from llamafactory.data.json_rows import read_json_rows
from llamafactory.data.parser import DatasetAttr, get_dataset_list
from llamafactory.data.sources import open_source
from llamafactory.extras.errors import UserError
from llamafactory.extras.packages import is_available


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
        ("a.json", '[{"a": "1', 'a.json, line 1: Unterminated string starting at "1"; mend'),
        ("a.jsonl", '{"a": "1\t2"}', r'a.jsonl, line 1: Invalid control character at "\t2'),
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
    with pytest.raises(UserError, match=r"needs the package 'modelscope', which is not installed: run `pip install"):
        open_source(DatasetAttr("ms_hub", "a/b"))
    with pytest.raises(UserError, match=r"needs the package 'openmind', which is not installed"):
        open_source(DatasetAttr("om_hub", "a/b"))
    with pytest.raises(UserError, match="a loading script, which is code that is not run here; save its rows"):
        open_source(DatasetAttr("script", "a"))
    with pytest.raises(UserError, match=r"reading oss:// needs `pip install ossfs`"):
        open_source(DatasetAttr("cloud_file", "oss://bucket/a.jsonl"))


@pytest.mark.parametrize(("suffix", "compression"), [("gz", "gzip"), ("zst", "zstd"), ("bz2", "bz2")])
@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
def test_packed_files_are_unpacked(tmp_path: Path, kind: str, suffix: str, compression: str) -> None:
    import pyarrow as pa

    texts = {
        "json": json.dumps(ROWS, indent=1),
        "jsonl": "\n".join(json.dumps(row) for row in ROWS),
        "csv": 'a,b\n"one\ntwo",\u4f60\u597d\nthree,\n',
    }
    path = tmp_path / f"rows.{kind}.{suffix}"
    with pa.output_stream(str(path), compression=compression) as sink:
        sink.write(texts[kind].encode())

    assert read(path) == ROWS
    (attr,) = get_dataset_list([str(path)], str(tmp_path))
    assert (attr.load_from, attr.is_detected) == ("file", True)


def test_a_damaged_packed_file_is_one_sentence(tmp_path: Path) -> None:
    packed = gzip.compress(json.dumps(ROWS * 500).encode())
    (tmp_path / "a.json.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "b.json.gz").write_bytes(b"not packed at all")
    (tmp_path / "c.parquet.gz").write_bytes(packed)

    with pytest.raises(UserError, match=r"a\.json\.gz.* (cannot be read|cut off|Unterminated|delimiter)"):
        read(tmp_path / "a.json.gz")
    with pytest.raises(UserError, match=r"b\.json\.gz cannot be read: .*; check that it is whole"):
        read(tmp_path / "b.json.gz")
    with pytest.raises(UserError, match=r"must hold files of one type of .*, not parquet\.gz"):
        read(tmp_path / "c.parquet.gz")


def test_a_pattern_reads_all_files_it_fits_in_the_order_of_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "rows.jsonl", json.dumps({"n": name}))
    monkeypatch.chdir(tmp_path)

    (attr,) = get_dataset_list(["[ab]/*.jsonl"], "data")

    assert [row.values for row in open_source(attr).read()] == [{"n": "a"}, {"n": "b"}]
    with pytest.raises(UserError, match=r"Unknown dataset|does not exist"):
        get_dataset_list(["nothing/*.jsonl"], "data")


def test_rows_are_read_from_a_cloud_store() -> None:
    import fsspec
    import pyarrow as pa
    from pyarrow import parquet

    store = fsspec.filesystem("memory")
    store.pipe("/rows/one.jsonl", json.dumps(ROWS[0]).encode())
    store.pipe("/rows/two.jsonl.gz", gzip.compress(json.dumps(ROWS[1]).encode()))
    store.pipe("/rows/readme.md", b"no rows")
    with store.open("/other/a.parquet", "wb") as sink:
        parquet.write_table(pa.Table.from_pylist(ROWS), sink)

    def read_url(url: str) -> list[dict[str, object]]:
        (attr,) = get_dataset_list([url], "data")
        assert attr.load_from == "cloud_file"
        return [row.values for row in open_source(attr).read()]

    assert read_url("memory://rows") == ROWS
    assert read_url("memory://rows/*.jsonl*") == ROWS
    assert read_url("memory://rows/two.jsonl.gz") == ROWS[1:]
    assert read_url("memory://other/a.parquet") == ROWS
    with pytest.raises(UserError, match=r"memory://nothing/a.jsonl\) must hold files of one type of .*, not no files"):
        read_url("memory://nothing/a.jsonl")
    with pytest.raises(UserError, match="cannot be reached at strange://a"):
        read_url("strange://a/b.jsonl")


def test_a_changed_file_in_a_cloud_store_has_another_digest() -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    attr = DatasetAttr("cloud_file", "memory://changing/a.jsonl")
    store.pipe("/changing/a.jsonl", b'{"a": 1}')
    before = open_source(attr).digest

    assert open_source(attr).digest == before
    store.pipe("/changing/a.jsonl", b'{"a": 22}')
    assert open_source(attr).digest != before


class Wrapped:
    """What ModelScope's loader returns: a wrapper with one way out."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def to_hf_dataset(self) -> Any:
        return self.rows


def test_the_other_hubs_are_read_through_their_own_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset

    asked: dict[str, Any] = {}

    def load_modelscope(dataset_name: str, **options: Any) -> Any:
        asked["ms"] = (dataset_name, options)
        return Wrapped(Dataset.from_list(ROWS))

    def load_openmind(path: str, **options: Any) -> Any:
        asked["om"] = (path, options)
        return Dataset.from_list(ROWS)

    for name, attribute, load in (
        ("modelscope", "MsDataset", SimpleNamespace(load=load_modelscope)),
        ("openmind", "OmDataset", SimpleNamespace(load_dataset=load_openmind)),
    ):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        setattr(module, attribute, load)
        monkeypatch.setitem(sys.modules, name, module)
    is_available.cache_clear()
    access = Access("cache", {"ms_hub": "mine", "om_hub": None})
    try:
        rows = [
            [row.values for row in open_source(DatasetAttr(origin, "org/name", subset="s"), access).read()]
            for origin in ("ms_hub", "om_hub")
        ]
    finally:
        is_available.cache_clear()

    assert rows == [ROWS, ROWS]
    wanted = {"subset_name": "s", "split": "train", "cache_dir": "cache", "token": "mine"}
    assert asked["ms"] == ("org/name", wanted)
    assert asked["om"] == ("org/name", {"name": "s", "split": "train", "cache_dir": "cache"})


def test_the_environment_chooses_the_hub_of_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    assert get_dataset_list(["org/name"], "data")[0].load_from == "hf_hub"
    monkeypatch.setenv("USE_OPENMIND_HUB", "1")
    assert get_dataset_list(["org/name"], "data")[0].load_from == "om_hub"
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    assert get_dataset_list(["org/name"], "ONLINE")[0].load_from == "ms_hub"


def test_a_hub_dataset_is_read_through_the_datasets_library(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    write(tmp_path / "repo" / "train.jsonl", "\n".join(json.dumps(row) for row in ROWS))
    attr = DatasetAttr("hf_hub", str(tmp_path / "repo"), name="mine")  # a folder stands in for a repository

    source = open_source(attr, Access(str(tmp_path / "cache")))

    assert [(row.values, row.where) for row in source.read()] == [(ROWS[0], "mine, row 1"), (ROWS[1], "mine, row 2")]
    with pytest.raises(
        UserError, match=r"The dataset mine could not be loaded from the hub .Hugging Face.: Unknown split"
    ):
        open_source(
            DatasetAttr("hf_hub", str(tmp_path / "repo"), name="mine", split="test"), Access(str(tmp_path / "cache"))
        )


@given(
    rows=st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=30) | st.integers(), max_size=3), min_size=1)
)
def test_a_file_read_in_small_pieces_gives_the_same_rows_and_lines(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.json"
    path.write_text("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]", encoding="utf-8")
    whole = list(read_json_rows(DataFile(str(path))))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "CHUNK", 7)
        pieces = list(read_json_rows(DataFile(str(path))))

    assert pieces == whole == [(line, row) for line, row in enumerate(rows, 2)]


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", "[]")
    before = open_source(DatasetAttr("file", str(path))).digest

    assert open_source(DatasetAttr("file", str(path))).digest == before
    write(path, "[ ]")
    assert open_source(DatasetAttr("file", str(path))).digest != before
