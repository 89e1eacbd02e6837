"""The data panel without its widgets: uploads, rows and figures as HTML, predictions page by page."""

import asyncio
import json
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llamafactory.data.parser import read_dataset_info, read_entry
from llamafactory.data.preparation import settle_layout
from llamafactory.data.registering import entry_of, register, write_whole
from llamafactory.data.sources import open_source
from llamafactory.extras.errors import UserError
from llamafactory.webui.datasets.reading import count_rows, data_config, read_rows
from llamafactory.webui.datasets.showing import show_figures, show_rows
from llamafactory.webui.datasets.uploading import add_upload, safe_name
from llamafactory.webui.predictions import read_page, show_page


SCRIPT = "<script>alert(1)</script>"
LAYOUTS: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "Hi", "input": "", "output": "Hello"},
    "prompt": {"prompt": "Hi", "completion": "Hello"},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    "openai": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    "pairs": {"prompt": "Hi", "chosen": "Hello", "rejected": "Go"},
    "marks": {"instruction": "Hi", "output": "Hello", "kto_tag": True},
    "text": {"text": "Hello"},
}


def run_apart(work: Coroutine[Any, Any, Any]) -> Any:
    """Run it in a thread of its own: the browser of other tests keeps a loop running in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


class Words(dict[str, str]):
    """Labels that are their own names."""

    def __missing__(self, key: str) -> str:
        return key


def write_jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_registered_upload_is_read_as_a_file_without_an_entry_would_be(name: str, tmp_path: Path) -> None:
    upload = write_jsonl(tmp_path / "up.jsonl", LAYOUTS[name], LAYOUTS[name])

    made = add_upload(upload, "up.jsonl", tmp_path / "data", 1)

    entry = read_dataset_info(str(tmp_path / "data"))[made.name]
    registered = read_entry(made.name, entry, str(tmp_path / "data"))
    (first, _) = open_source(registered).read()
    learns: Any = {"pairs": "pairs", "marks": "marks"}.get(name, "answers")
    settled = settle_layout(registered, first, learns)
    assert entry_of(settled, "up.jsonl") == entry
    assert (made.num_rows, made.num_usable, made.file.parent) == (2, 2, tmp_path / "data")


def test_uploads_never_replace_a_file_or_an_entry(tmp_path: Path) -> None:
    upload = write_jsonl(tmp_path / "up.jsonl", LAYOUTS["alpaca"])
    data = tmp_path / "data"
    data.mkdir()
    (data / "up.jsonl").write_text("mine", encoding="utf-8")
    write_whole(data / "dataset_info.json", json.dumps({"up_2": {"file_name": "other.json"}, "b": {}}))

    made = add_upload(upload, "up.jsonl", data, 1)

    assert made.name == "up_3"
    assert (data / "up.jsonl").read_text(encoding="utf-8") == "mine"
    table = read_dataset_info(str(data))
    assert list(table) == ["up_2", "b", "up_3"]
    assert table["up_2"] == {"file_name": "other.json"}


@pytest.mark.parametrize(
    ("shown", "name"),
    [
        ("../../etc/passwd.json", "passwd"),
        ("..\\..\\boot.JSONL", "boot"),
        ("x; touch y.csv", "x_touch_y"),
        (f"{SCRIPT}.json", "script"),
        ("<img src=x>.txt", "img_src_x"),
        ("\u6570\u636e 1.json", "\u6570\u636e_1"),
        ("....json", "upload"),
        (f"{'a' * 300}.json", "a" * 64),
    ],
)
def test_names_of_uploads_are_made_plain(shown: str, name: str) -> None:
    assert safe_name(shown)[0] == name


@pytest.mark.parametrize("shown", ["model.bin", "x.pkl", ".json", "noending", "a.json.gz", "dataset.py", "a.arrow"])
def test_files_of_other_kinds_are_refused(shown: str) -> None:
    with pytest.raises(UserError, match="no file of rows"):
        safe_name(shown)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"instruction": "Hi", "output": 1}\n', "Row 1"),
        (b'{"instruction": "Hi"\n', "line 1"),
        (b"[" * 200_000, "bad.jsonl"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"strange": 1}\n', "layout"),
        (b"", "no rows"),
        (b"\xff\xfe\x00\x01", "UTF-8"),
        (b'{"instruction": "", "output": ""}\n', "No row"),
    ],
)
def test_files_that_cannot_be_learned_from_are_refused_and_leave_nothing(
    content: bytes, problem: str, tmp_path: Path
) -> None:
    upload = tmp_path / "bad.jsonl"
    upload.write_bytes(content)

    with pytest.raises(UserError, match=problem) as caught:
        add_upload(upload, "bad.jsonl", tmp_path / "data", 1)

    assert str(tmp_path) not in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_a_giant_upload_is_refused_before_it_is_read(tmp_path: Path) -> None:
    upload = tmp_path / "big.jsonl"
    with upload.open("wb") as file:
        file.truncate(2 * 2**20 + 1)  # sparse

    with pytest.raises(UserError, match="at most 2"):
        add_upload(upload, "big.jsonl", tmp_path / "data", 2)


def test_registering_at_the_same_time_loses_no_entry(tmp_path: Path) -> None:
    threads = [threading.Thread(target=register, args=(tmp_path, f"d{n}", {"file_name": "x"})) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert set(read_dataset_info(str(tmp_path))) == {f"d{n}" for n in range(8)}
    with pytest.raises(UserError, match="already"):
        register(tmp_path, "d0", {})
    assert not list(tmp_path.glob(".dataset_info.json.[!l]*"))


def run_config(model: Path, dataset_dir: Path, **changes: Any) -> dict[str, Any]:
    config = {"model_name_or_path": str(model), "dataset_dir": str(dataset_dir), "dataset": ("tiny_alpaca",)}
    return {**config, "stage": "sft", "cutoff_len": 64, "learning_rate": "no number", **changes}


def test_rows_are_shown_as_the_model_sees_them(tiny_llama_dir: Path, demo_dataset_dir: Path) -> None:
    rows = read_rows(run_config(tiny_llama_dir, demo_dataset_dir), 2, 3)

    page = show_rows(rows, Words())

    assert [row.number for row in rows] == [4, 5]
    assert '<span class="control">&lt;|im_start|&gt;</span>user' in page
    answer = next(segment for segment in rows[0].segments if segment.is_learned)
    assert f'<span class="text learned">{answer.stretches[0].text}' in page
    assert str(demo_dataset_dir) not in page


def test_names_and_rows_of_strangers_are_text(tiny_llama_dir: Path, tmp_path: Path) -> None:
    name = "<img src=x>"
    write_jsonl(
        tmp_path / "rows.jsonl", {"instruction": SCRIPT, "output": f"{SCRIPT}<|im_end|>"}, {"instruction": "x"}
    )
    write_whole(tmp_path / "dataset_info.json", json.dumps({name: {"file_name": "rows.jsonl"}}))

    page = show_rows(read_rows(run_config(tiny_llama_dir, tmp_path, dataset=(name,)), 5, 0), Words())

    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.slow
def test_figures_are_those_of_the_command(tiny_llama_dir: Path, demo_dataset_dir: Path) -> None:
    figures = run_apart(count_rows(run_config(tiny_llama_dir, demo_dataset_dir, use_cpu=True)))

    page = show_figures(figures, Words())

    (dataset,) = figures["datasets"]
    assert (dataset["name"], dataset["num_read"]) == ("tiny_alpaca", 24)
    assert f"<td>{dataset['num_tokens']:,}</td>" in page
    assert "run_steps" in page


def test_what_is_wrong_with_the_data_is_said_in_a_sentence(tiny_llama_dir: Path, demo_dataset_dir: Path) -> None:
    config = run_config(tiny_llama_dir, demo_dataset_dir, dataset=("nowhere",))

    with pytest.raises(UserError, match="Unknown dataset 'nowhere'"):
        read_rows(config, 1, 0)


@pytest.mark.slow
def test_what_is_wrong_with_counted_data_is_said_too(tiny_llama_dir: Path, demo_dataset_dir: Path) -> None:
    with pytest.raises(UserError, match="Unknown dataset 'nowhere'"):
        run_apart(count_rows(run_config(tiny_llama_dir, demo_dataset_dir, dataset=("nowhere",))))


def test_counting_stops_when_nobody_waits_for_it(
    tiny_llama_dir: Path, demo_dataset_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    create = asyncio.create_subprocess_exec

    async def watch(*args: Any, **options: Any) -> Any:
        started.append(await create(*args, **options))
        return started[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", watch)
    with pytest.raises(UserError, match="stopped"):
        run_apart(count_rows(run_config(tiny_llama_dir, demo_dataset_dir), timeout=0.2))
    assert started[0].returncode is not None


def test_only_what_concerns_data_is_asked_for() -> None:
    assert data_config({"dataset": "a", "lora_rank": 0, "learning_rate": "x", "hf_hub_token": "t"}, "o") == {
        "dataset": "a",
        "output_dir": "o",
    }


def test_predictions_are_read_page_by_page(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "predict": f"q{n}", "label": f"l{n}"} for n in range(25)]
    path = write_jsonl(tmp_path / "generated_predictions.jsonl", *rows)

    assert [row["prompt"] for row in read_page(path, 1, 10).rows] == [f"p{n}" for n in range(10, 20)]
    last = read_page(path, 99, 10)
    assert (last.first, last.total, len(last.rows)) == (20, 25, 5)
    assert read_page(path, -3, 10).first == 0


def test_predictions_of_strangers_are_text(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", {"prompt": SCRIPT, "predict": [SCRIPT], "label": None})
    with path.open("a", encoding="utf-8") as file:
        file.write(f'{{"prompt": "{SCRIPT}')  # a line that is still being written

    page = read_page(path, 0, 10)
    shown = show_page(page, Words())

    assert page.total == 2
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;") == 3
    assert (
        show_page(read_page(write_jsonl(tmp_path / "e.jsonl"), 0, 10), Words())
        == '<p class="empty">no_predictions</p>'
    )
