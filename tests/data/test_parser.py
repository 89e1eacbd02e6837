import json
from pathlib import Path

import pytest

from llamafactory.data.parser import DatasetAttr, get_dataset_list
from llamafactory.extras.errors import UserError


def write_info(folder: Path, table: object) -> str:
    text = table if isinstance(table, str) else json.dumps(table)
    (folder / "dataset_info.json").write_text(text, encoding="utf-8")
    return str(folder)


def read_one(folder: Path, entry: dict[str, object]) -> DatasetAttr:
    (attr,) = get_dataset_list(["mine"], write_info(folder, {"mine": entry}))
    return attr


def test_an_entry_without_columns_has_those_of_its_formatting(tmp_path: Path) -> None:
    attr = read_one(tmp_path, {"file_name": "a.json"})

    assert (attr.prompt, attr.query, attr.response, attr.history) == ("instruction", "input", "output", None)
    assert attr.dataset_name == str(tmp_path / "a.json")


def test_partial_columns_are_put_over_the_defaults(tmp_path: Path) -> None:
    attr = read_one(tmp_path, {"file_name": "a.json", "columns": {"response": "answer", "query": None}})

    assert (attr.prompt, attr.query, attr.response) == ("instruction", None, "answer")


def test_partial_tags_are_put_over_the_defaults(tmp_path: Path) -> None:
    entry = {"file_name": "a.json", "formatting": "sharegpt", "tags": {"user_tag": "user"}}

    attr = read_one(tmp_path, entry)

    assert (attr.role_tag, attr.user_tag, attr.assistant_tag, attr.messages) == (
        "from",
        "user",
        "gpt",
        "conversations",
    )


def test_openai_messages_have_tags_of_their_own(tmp_path: Path) -> None:
    attr = read_one(tmp_path, {"file_name": "a.json", "formatting": "openai"})

    assert (attr.messages, attr.role_tag, attr.content_tag, attr.observation_tag) == (
        "messages",
        "role",
        "content",
        "tool",
    )


def test_all_other_keys_are_read(tmp_path: Path) -> None:
    entry = {"hf_hub_url": "a/b", "subset": "s", "split": "test", "folder": "f", "num_samples": 3, "ranking": True}

    attr = read_one(tmp_path, {**entry, "values": {"name": "Nova"}})

    assert (attr.load_from, attr.dataset_name, attr.subset, attr.split) == ("hf_hub", "a/b", "s", "test")
    assert (attr.folder, attr.num_samples, attr.ranking, attr.values) == ("f", 3, True, {"name": "Nova"})


def test_the_environment_chooses_among_hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"hf_hub_url": "a/b", "ms_hub_url": "c/d", "file_name": "x.json"}
    assert read_one(tmp_path, entry).load_from == "hf_hub"

    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    assert read_one(tmp_path, entry).dataset_name == "c/d"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"mine": {}}, "does not say where its rows are"),
        ({"mine": "a.json"}, "must be an object"),
        ({"mine": {"file_name": "a.json", "weight": 0}}, "has weight 0; give a number above 0"),
        ({"mine": {"file_name": "a.json", "weight": True}}, "has weight True; give a number above 0"),
        ({"mine": {"file_name": "a.json", "num_samples": 0}}, "num_samples 0; give a whole number from 1 on"),
        ({"mine": {"file_name": "a.json", "num_samples": 2, "weight": 2}}, "has both num_samples and weight"),
        ({"mine": {"file_name": "a.json", "formatting": "alpca"}}, "formatting 'alpca'; use one of alpaca"),
        ({"mine": {"file_name": "a.json", "columns": {"promt": "x"}}}, "unknown key 'promt'. Did you mean 'prompt'"),
        ({"mine": {"file_name": "a.json", "tags": ["x"]}}, "must be an object"),
        ({"mine": {"file_name": "a.json", "values": {"name": 3}}}, "'values', must be an object of texts"),
        ('{"mine": {\n"file_name" "a.json"}}', "dataset_info.json, line 2: Expecting ':' delimiter"),
        ("[]", "must hold an object whose keys are dataset names"),
    ],
)
def test_a_bad_entry_is_one_sentence(tmp_path: Path, table: object, message: str) -> None:
    with pytest.raises(UserError) as caught:
        get_dataset_list(["mine"], write_info(tmp_path, table))

    assert message in str(caught.value)


def test_an_unknown_key_of_an_entry_is_a_notice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_one(tmp_path, {"file_name": "a.json", "file_sha1": "0"})

    assert "unknown key 'file_sha1'" in caplog.text


def test_an_unknown_dataset_names_the_nearest_and_the_known(tmp_path: Path) -> None:
    folder = write_info(tmp_path, {f"set_{index}": {"file_name": "a.json"} for index in range(40)})

    with pytest.raises(UserError) as caught:
        get_dataset_list(["sett_3"], folder)

    assert "Did you mean 'set_3'" in str(caught.value)
    assert "and 10 more" in str(caught.value)


def test_a_path_needs_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_text("{}", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.csv").write_text("a\n1\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    attrs = get_dataset_list(["rows.jsonl", str(tmp_path / "folder")], "data")

    assert [attr.dataset_name for attr in attrs] == ["rows.jsonl", str(tmp_path / "folder")]
    assert all(attr.is_detected and attr.load_from == "file" for attr in attrs)


def test_a_path_may_start_in_the_dataset_folder(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[]", encoding="utf-8")

    (attr,) = get_dataset_list(["rows.json"], str(tmp_path))

    assert attr.dataset_name == str(tmp_path / "rows.json")


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing.json", "The dataset file 'missing.json' does not exist"), ("mine", "there is no ")],
)
def test_a_missing_path_is_one_sentence(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_dataset_list([name], str(tmp_path))


def test_hub_ids_and_tables_in_memory(tmp_path: Path) -> None:
    (online,) = get_dataset_list(["anything"], "ONLINE")
    (hub,) = get_dataset_list(["org/name"], str(tmp_path))
    (memory,) = get_dataset_list(["mine"], {"mine": {"file_name": "a.json"}})

    assert (online.load_from, hub.load_from) == ("hf_hub", "hf_hub")
    assert memory.dataset_name == "a.json"


def test_a_dataset_attr_needs_only_where_and_what() -> None:
    attr = DatasetAttr("hf_hub", "org/name")

    assert (attr.formatting, attr.split, str(attr)) == ("alpaca", "train", "org/name")
