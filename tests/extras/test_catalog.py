"""The model catalog: complete, unique, and every template it names exists."""

import tomllib
from collections import Counter
from pathlib import Path

import pytest

from llamafactory.extras import constants
from llamafactory.extras.catalog import FOLDER, DownloadSource, find_hub_id, known_models, similar_models
from llamafactory.hparams.parser import ConfigError, load_run_config


TRAIN = {"stage": "sft", "do_train": True, "dataset": "identity", "output_dir": "saves/x", "template": "qwen3"}


def test_the_tables_have_every_model() -> None:
    assert len(constants.SUPPORTED_MODELS) == 634
    assert len(constants.DEFAULT_TEMPLATE) == 467
    assert len(constants.MULTIMODAL_SUPPORTED_MODELS) == 174


def test_names_are_unique_and_fit_into_a_path() -> None:
    names = [
        name
        for path in FOLDER.glob("*.toml")
        for group in tomllib.loads(path.read_text(encoding="utf-8"))["groups"]
        for kind in ("base", "models")
        for name in group.get(kind, {})
    ]

    assert [name for name, count in Counter(name.lower() for name in names).items() if count > 1] == []
    assert [name for name in names if not set(name) <= set("-._+") | set(filter(str.isalnum, name))] == []


def test_every_template_of_the_catalog_exists() -> None:
    from llamafactory.data import TEMPLATES

    assert set(constants.DEFAULT_TEMPLATE.values()) - set(TEMPLATES.names()) == set()


def test_media_models_have_a_template() -> None:
    assert set(constants.MULTIMODAL_SUPPORTED_MODELS) <= set(constants.DEFAULT_TEMPLATE)


def test_every_model_is_on_hugging_face_under_org_and_name() -> None:
    ids = [hub_id for hubs in constants.SUPPORTED_MODELS.values() for hub_id in hubs.values()]

    assert all(DownloadSource.DEFAULT in model.hubs for model in known_models().values())
    assert [hub_id for hub_id in ids if hub_id.count("/") != 1] == []


def test_a_display_name_stands_for_its_id_on_the_hub_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {**TRAIN, "model_name_or_path": "Llama-2-7B-Chat"}
    assert load_run_config(given).values["model_name_or_path"] == "meta-llama/Llama-2-7b-chat-hf"

    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    assert load_run_config(given).values["model_name_or_path"] == "modelscope/Llama-2-7b-chat-ms"


def test_a_folder_of_that_name_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "GPT-2-Small").mkdir()

    config = load_run_config({**TRAIN, "model_name_or_path": "GPT-2-Small"})
    assert config.values["model_name_or_path"] == "GPT-2-Small"


def test_a_model_that_the_hub_lacks_is_refused_with_its_other_homes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_OPENMIND_HUB", "1")

    with pytest.raises(ConfigError, match=r"not known on the hub that is set \(Modelers\).*openai-community/gpt2"):
        load_run_config({**TRAIN, "model_name_or_path": "GPT-2-Small"})


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    assert "'Qwen3-0.6B-Base'" in similar_models("Qwen3-0.6B-Bse")
    assert find_hub_id("Qwen3-0.6B-Bse", DownloadSource.DEFAULT) is None
    assert similar_models("zzzzzz") == ""
    assert similar_models("openai-community/gpt2") == ""


def test_a_table_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="NO_SUCH_TABLE"):
        constants.__getattr__("NO_SUCH_TABLE")
