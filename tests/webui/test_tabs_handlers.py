"""What the tabs do with what no page of ours would send: handlers are called directly, without a browser."""

import asyncio
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafactory.webui.chat.answering import Settings
from llamafactory.webui.chat.desk import ChatDesk, read_settings
from llamafactory.webui.chat.handlers import ChatHandlers
from llamafactory.webui.chat.loaded import ModelSlot
from llamafactory.webui.chat.loading import LoadHandlers
from llamafactory.webui.components.data import DataHandlers
from llamafactory.webui.components.eval import EvalHandlers
from llamafactory.webui.components.export import ExportHandlers
from llamafactory.webui.components.runs import RunsHandlers
from llamafactory.webui.engine import Engine
from llamafactory.webui.layout import fields_of, list_fields
from llamafactory.webui.places import Places
from llamafactory.webui.wording import FOLDER, LANGUAGES, load_words


STRAY = ["../../x", "/etc", "..", "a/../../..", "x\0y", "saves/../../x"]
SCRIPT = "<script>alert(1)</script>"
REQUEST: Any = SimpleNamespace(session_hash="me")


class Elements(dict[str, Any]):
    """Elements that are their own names, so that values and updates are dicts by name."""

    def __missing__(self, name: str) -> str:
        return name


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    engine = Engine(places=Places(work=tmp_path))
    names = (*list_fields("top"), "lang", "model_name")
    engine.manager.add_elems("top", {name: f"top.{name}" for name in names})
    engine.chatter = ChatDesk()
    return engine


def elements_of(tab: str) -> Elements:
    return Elements({name: f"{tab}.{name}" for name in (*list_fields(tab), "extra_args")})


def form(tab: str, **values: Any) -> dict[Any, Any]:
    """Return the values of a filled form."""
    filled = dict.fromkeys(fields_of(("top", tab)))
    filled |= {"top.lang": "en", "top.model_name": "Custom", "top.finetuning_type": "lora"}
    filled |= {"top.model_path": "models/tiny", f"{tab}.dataset_dir": "data"}
    return {**filled, **{name.replace("__", "."): value for name, value in values.items()}}


def write_run(root: Path, name: str, log: str = "", **config: Any) -> Path:
    folder = root / "saves" / name
    folder.mkdir(parents=True)
    lines = "".join(f"{key}: {json.dumps(value)}\n" for key, value in {"do_train": True, **config}.items())
    (folder / "training_args.yaml").write_text(lines, encoding="utf-8")
    (folder / "trainer_log.jsonl").write_text(
        "".join(json.dumps({"current_steps": step, "loss": 2.0 / step, "lr": 0.1}) + "\n" for step in range(1, 9)),
        encoding="utf-8",
    )
    (folder / "webui_subprocess.log").write_text(log, encoding="utf-8")
    for file in folder.iterdir():
        os.utime(file, (1e9, 1e9))  # a run whose files change at this moment may be going on
    return folder


@pytest.mark.parametrize("name", STRAY)
def test_runs_that_the_list_does_not_show_are_neither_read_nor_deleted(engine: Engine, name: str) -> None:
    outside = engine.places.work / "x"
    write_run(engine.places.work, "m/lora/one")
    outside.mkdir()
    handlers = RunsHandlers(engine, Elements())

    shown = handlers.show([name], "en")
    assert "problem" in shown["message"]
    assert "comparison" not in shown
    for action in (handlers.resume, handlers.queue, handlers.stop):
        assert "problem" in action([name], "en")
    assert "problem" in handlers.delete([name], "en")["message"]
    assert "problem" in handlers.clone([name], "en")["message"]
    assert "problem" in handlers.ask_delete([name], "en")["message"]
    assert outside.is_dir()
    assert (engine.places.saves / "m/lora/one").is_dir()


def test_runs_are_compared_cloned_and_deleted(engine: Engine) -> None:
    for name, rate in (("m/lora/one", 0.1), ("m/lora/two", 0.2)):
        write_run(engine.places.work, name, learning_rate=rate, stage="sft", dataset="d")
    engine.manager.add_elems("train", {name: f"train.{name}" for name in (*list_fields("train"), "extra_args")})
    handlers = RunsHandlers(engine, Elements())
    handlers.form = [*engine.fields, "top.model_name", "train.extra_args"]
    handlers.tabs = "tabs"

    compared = handlers.show(["m/lora/one", "m/lora/two"], "en")
    cloned = handlers.clone(["m/lora/two"], "en")
    two = handlers.clone(["m/lora/one", "m/lora/two"], "en")
    deleted = handlers.delete(["m/lora/one"], "en")

    assert "<td>0.1</td><td>0.2</td>" in compared["comparison"]
    assert "stage" not in compared["comparison"]
    assert set(compared["_plot_0"]["value"]["run"]) == {"m/lora/one", "m/lora/two"}
    assert cloned["train.learning_rate"]["value"] == "0.2"
    assert cloned["tabs"]["selected"] == "train"
    assert "exactly one" in two["message"]
    assert deleted["chosen"]["value"] == [], deleted["message"]
    assert not (engine.places.saves / "m/lora/one").exists()
    assert (engine.places.saves / "m/lora/two").is_dir()


def test_names_and_logs_of_runs_are_text(engine: Engine) -> None:
    name = "m/lora/<img src=x>"
    write_run(engine.places.work, name, log=f"{SCRIPT}\n", dataset=SCRIPT)
    handlers = RunsHandlers(engine, Elements())

    shown = handlers.show([name], "en")
    asked = handlers.ask_delete([name], "en")

    for html in (shown["comparison"], asked["message"]):
        assert "<script" not in html
        assert "<img" not in html
    assert "&lt;script&gt;" in shown["comparison"]


@pytest.mark.parametrize("name", [*STRAY, "", "x; touch y/../..", "../saves2/x"])
def test_results_stay_inside_the_folder_of_runs(engine: Engine, name: str) -> None:
    handlers = EvalHandlers(engine, elements_of("eval"))
    values = form("eval", eval__dataset=["d"], eval__predict=True) | {"output_dir": name}

    job, problems = handlers.read(values)

    assert problems
    assert job is None or job.run_dir.resolve().is_relative_to(engine.places.saves.resolve())
    assert "output_box" in handlers.start(values)
    assert not engine.places.saves.exists()


def test_a_shell_finds_nothing_in_a_name(engine: Engine) -> None:
    handlers = EvalHandlers(engine, elements_of("eval"))

    job, _ = handlers.read(form("eval", eval__dataset=["d"], eval__predict=False) | {"output_dir": "x; touch y"})

    assert job is None or job.run_dir.name == "x; touch y"
    assert not (engine.places.work / "y").exists()


@pytest.mark.parametrize("run_id", [*STRAY, None, SCRIPT])
def test_predictions_of_no_run_are_not_read(engine: Engine, run_id: str | None) -> None:
    handlers = EvalHandlers(engine, elements_of("eval"))

    shown = handlers.first_page(run_id, 5, "nonsense", "en")

    assert shown["predictions"] == ""
    assert "download_btn" not in shown
    assert SCRIPT not in str(handlers.panel.show(run_id, "en", ""))


def test_predictions_are_shown_beside_what_was_expected(engine: Engine) -> None:
    folder = write_run(engine.places.work, "m/lora/one")
    rows = [{"prompt": SCRIPT, "predict": f"p{place}", "label": "l"} for place in range(7)]
    (folder / "generated_predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    handlers = EvalHandlers(engine, elements_of("eval"))

    shown = handlers.page_behind("m/lora/one", 5, 1, "en")

    assert "6-7 of 7" in shown["predictions"]
    assert "<script" not in shown["predictions"]
    assert shown["download_btn"] == str(folder / "generated_predictions.jsonl")


@pytest.mark.parametrize("folder", ["../../x", "/etc/model", "a/../../.."])
def test_exports_stay_inside_the_folders_of_the_board(engine: Engine, folder: str) -> None:
    handlers = ExportHandlers(engine, elements_of("export"))

    told = handlers.start(form("export", export__export_dir=folder))

    assert "problem" in told["output_box"]
    assert not engine.places.saves.exists()


def test_an_export_says_what_is_missing(engine: Engine) -> None:
    handlers = ExportHandlers(engine, elements_of("export"))

    told = handlers.start(form("export", top__model_path=""))["output_box"]

    assert told.count("problem") == 2


@pytest.mark.parametrize("folder", ["../..", "/etc"])
def test_data_is_read_and_uploaded_only_inside_the_folders_of_the_board(engine: Engine, folder: str) -> None:
    handlers = DataHandlers(engine, "eval", elements_of("eval"))
    upload = engine.places.work / "rows.jsonl"
    upload.write_text('{"instruction": "Hi", "output": "Hello"}\n', encoding="utf-8")

    page = handlers.first_page(form("eval", eval__dataset_dir=folder, eval__dataset=["d"]))
    added = asyncio.run(handlers.upload(str(upload), folder, [], "en"))

    assert "outside" in page["preview_samples"]
    assert "outside" in added["data_message"]


def test_an_upload_is_registered_and_chosen(engine: Engine) -> None:
    handlers = DataHandlers(engine, "eval", elements_of("eval"))
    upload = engine.places.work / "my rows.jsonl"
    upload.write_text('{"instruction": "Hi", "output": "Hello"}\n', encoding="utf-8")

    added = asyncio.run(handlers.upload(str(upload), "data", ["other"], "en"))

    assert added["eval.dataset"]["value"] == ["other", "my_rows"]
    assert "my_rows" in added["eval.dataset"]["choices"]
    assert (engine.places.work / "data" / "my_rows.jsonl").is_file()


def loading(engine: Engine, **values: Any) -> list[dict[Any, Any]]:
    handlers = LoadHandlers(engine, Elements({"extra_args": "infer.extra_args"}))

    async def collect() -> list[dict[Any, Any]]:
        data = form("infer", **values) | {"compare": False}
        return [update async for update in handlers.load(data)]

    return asyncio.run(collect())


def test_what_cannot_be_loaded_is_said_in_a_sentence(engine: Engine) -> None:
    assert "not written as" in loading(engine, infer__extra_args="[}")[-1]["info_box"]
    assert "model_name_or_path" in loading(engine, top__model_path="")[-1]["info_box"]
    outside = engine.places.work.parent / "evil.py"
    outside.write_text("", encoding="utf-8")
    told = loading(engine, infer__extra_args=json.dumps({"plugins": str(outside)}))[-1]["info_box"]
    assert "outside the folders" in told
    assert not engine.chatter.slot.is_loaded


def chatting(engine: Engine, **values: Any) -> list[dict[Any, Any]]:
    handlers = ChatHandlers(engine, Elements())
    given = {"query": "Hi", "role": "user", "messages": (), "escape_html": True, "top.lang": "en", **values}

    async def collect() -> list[dict[Any, Any]]:
        return [update async for update in handlers.send(given, REQUEST)]

    return asyncio.run(collect())


class Voices(ModelSlot):
    """A slot that seems to hold a model, which nobody may reach."""

    def voice(self, name: str | None = None) -> Any:
        return None


@pytest.mark.parametrize(
    "values",
    [
        {"role": "system"},
        {"role": "../../x"},
        {"query": "x" * 1_000_001},
        {"tools": "[{]"},
        {"tools": '[{"description": "no name"}]'},
        {"temperature": -1},
        {"top_p": 7},
        {"max_new_tokens": "many"},
        {"seed": "x; touch y"},
        {"query": "   "},
    ],
    ids=lambda values: "-".join(values),
)
def test_a_message_that_cannot_be_sent_is_refused_before_the_model_is_asked(
    engine: Engine, values: dict[str, Any]
) -> None:
    engine.chatter = ChatDesk(Voices())

    assert chatting(engine, **values) == [{}]


def test_without_a_model_nothing_is_said(engine: Engine) -> None:
    assert chatting(engine) == [{}]


def test_controls_become_options() -> None:
    controls = {"max_new_tokens": 8.0, "temperature": 0, "seed": -1, "enable_thinking": False, "tools": " "}

    assert read_settings(controls) == Settings(
        tools=" ", thinking=False, options={"max_new_tokens": 8, "temperature": 0}
    )
    assert read_settings({"seed": 7.0}).options == {"seed": 7}


@pytest.mark.parametrize("tab", ["infer", "eval", "export", "runs", "data", "tabs"])
def test_every_word_of_the_tabs_is_there_in_five_languages(tab: str) -> None:
    def check(entry: dict[str, Any], where: str) -> None:
        if all(isinstance(value, str) for value in entry.values()):
            assert set(entry) == set(LANGUAGES), where
            assert all(text.strip() for text in entry.values()), where
            return
        for name, inner in entry.items():
            check(inner, f"{where}.{name}")

    words = load_words(tab)
    assert words
    for name, entry in words.items():
        check(dict(entry), f"{tab}.{name}")


@pytest.mark.parametrize("tab", ["infer", "eval", "export"])
def test_every_field_of_the_tabs_has_a_label(tab: str) -> None:
    assert (FOLDER / f"{tab}.toml").is_file()
    for name in list_fields(tab):
        assert "label" in load_words(tab).get(name, {}), name


def test_the_export_tab_shows_every_key_of_an_export() -> None:
    from llamafactory.hparams.schema import list_params

    declared = {key for key, param in list_params("export").items() if param.owner.__name__ == "ExportArguments"}

    assert declared <= {field.key for field in list_fields("export").values()}
