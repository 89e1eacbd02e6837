"""The resolved configuration: where values come from, how it repeats a run, and that it holds no secret."""

import logging
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_corpus import REQUIRED, good_values
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafactory import hparams
from llamafactory.extras.errors import UserError
from llamafactory.hparams import (
    ConfigError,
    DataArguments,
    EvaluationArguments,
    FinetuningArguments,
    GeneratingArguments,
    ModelArguments,
    RayArguments,
    TrainingArguments,
)
from llamafactory.hparams.config import write_value
from llamafactory.hparams.parser import load_run_config
from llamafactory.hparams.reading import read_given
from llamafactory.hparams.schema import COMMAND_CLASSES, list_params
from llamafactory.hparams.values import coerce


BASE = {**REQUIRED["train"], "do_train": True, "dataset": "a,b"}
SECRET = "hf_abcdefgh12345678"


def test_the_documented_tuples_come_in_order() -> None:
    train = hparams.get_train_args(BASE)
    assert [type(item) for item in train] == [
        ModelArguments,
        DataArguments,
        TrainingArguments,
        FinetuningArguments,
        GeneratingArguments,
    ]
    assert [type(item) for item in hparams.get_infer_args({"model_name_or_path": "x"})] == [
        ModelArguments,
        DataArguments,
        FinetuningArguments,
        GeneratingArguments,
    ]
    assert [type(item) for item in hparams.get_eval_args(REQUIRED["eval"])] == [
        ModelArguments,
        DataArguments,
        EvaluationArguments,
        FinetuningArguments,
    ]
    assert hparams.get_ray_args({**BASE, "ray_init_kwargs": '{"num_cpus": 2}'}) == RayArguments(
        ray_init_kwargs={"num_cpus": 2}
    )


def test_args_may_be_a_list_or_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["model_name_or_path=x", "--output_dir", "y", "lora_rank=4"]
    monkeypatch.setattr("sys.argv", ["llamafactory-cli", *words])
    assert hparams.get_train_args() == hparams.get_train_args(words)
    assert hparams.get_train_args()[3].lora_rank == 4
    assert hparams.get_train_args()[3].lora_alpha == 8


def test_argument_objects_are_frozen_and_checked_however_they_are_made() -> None:
    arguments = DataArguments(dataset="a, b", val_size="0.1")  # pyright: ignore[reportArgumentType]
    assert (arguments.dataset, arguments.val_size) == (("a", "b"), 0.1)
    with pytest.raises(FrozenInstanceError):
        arguments.cutoff_len = 5  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UserError, match="cutoff_len is 0 but must be a whole number >= 1"):
        DataArguments(cutoff_len=0)


def test_every_value_has_its_source(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model_name_or_path: x\noutput_dir: y\nwarmup_ratio: 0.1\nlora_rank: 4\n")
    config = load_run_config([str(file), "cutoff_len=8", "--template", "qwen"])
    expected = {
        "model_name_or_path": f"{file}:1",
        "warmup_steps": f"{file}:3 (warmup_ratio)",
        "lora_rank": f"{file}:4",
        "cutoff_len": "command line",
        "template": "--template",
        "lora_alpha": "derived",
        "lora_dropout": "default",
    }
    assert {key: config.sources[key] for key in expected} == expected
    assert config.sources.keys() == list_params("train").keys()
    text = config.to_yaml()
    assert f"lora_rank: 4  # {file}:4" in text
    assert "# lora_alpha: 8" in text


@pytest.mark.parametrize("command", list(COMMAND_CLASSES))
def test_a_run_repeats_from_its_resolved_file(command: str, tmp_path: Path) -> None:
    extra = {
        "lora_rank": 4,
        "adapter_name_or_path": ["a b", "c,d"],
        "default_system": 'Zeile\n"zwei" \u2028 \U0001f600',
    }
    config = load_run_config({**REQUIRED[command], **extra}, command)
    file = tmp_path / "resolved.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    again = load_run_config([str(file)], command)
    assert again.arguments == config.arguments
    assert again.notices == ()
    assert yaml.safe_load(config.to_yaml())["default_system"] == extra["default_system"]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data(), name=st.sampled_from(sorted(list_params("train"))))
def test_every_written_value_is_read_back(data: st.DataObject, name: str) -> None:
    param = list_params("train")[name]
    value = data.draw(st.sampled_from(good_values(param)) if not param.has(str) or param.choices else st.text())
    raw = read_back(f"{name}: {write_value(value)}\n", name)
    assert coerce(param, raw) == value


@settings(max_examples=200, deadline=None, derandomize=True)
@given(names=st.lists(st.text(min_size=1), min_size=1, max_size=3).map(tuple))
def test_every_written_list_is_read_back(names: tuple[str, ...]) -> None:
    raw = read_back(f"lora_target: {write_value(names)}  # run.yaml:3\n", "lora_target")
    assert coerce(list_params("train")["lora_target"], raw) == names


def read_back(text: str, name: str) -> Any:
    from llamafactory.hparams.yamltext import read_entries

    return next(entry.raw for entry in read_entries(text) if entry.key == name)


SECRET_KEYS = sorted(name for name, param in list_params("train").items() if param.is_secret)


def test_the_secret_keys_are_known() -> None:
    assert SECRET_KEYS == [
        "hf_hub_token",
        "hub_token",
        "ms_hub_token",
        "om_hub_token",
        "swanlab_api_key",
        "swanlab_lark_secret",
        "swanlab_lark_webhook_url",
    ]
    suspicious = {name for name in list_params("train") if name.endswith(("token", "secret", "api_key", "password"))}
    assert suspicious <= set(SECRET_KEYS)


@pytest.mark.parametrize("key", SECRET_KEYS)
def test_a_secret_reaches_its_object_and_nothing_else(
    key: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    config = load_run_config({**BASE, key: "s3cr3t-value"})
    assert any(getattr(item, key, None) == "s3cr3t-value" for item in config.arguments)
    assert key not in config.values
    for text in (repr(config), str(config.arguments), config.to_yaml(), str(config.values), caplog.text):
        assert "s3cr3t-value" not in text
    with pytest.raises(ConfigError) as caught:
        load_run_config({**BASE, key: ["s3cr3t-value", ["x"]]})
    assert "s3cr3t-value" not in str(caught.value)
    captured = capsys.readouterr()
    assert "s3cr3t-value" not in captured.out + captured.err


def test_secrets_inside_mappings_and_messages_are_hidden() -> None:
    config = load_run_config(
        {**BASE, "accelerator_config": {"api_key": "s3cr3t", "inner": [{"token": "s3cr3t", "a": 1}]}}
    )
    assert "s3cr3t" not in config.to_yaml()
    assert config.values["accelerator_config"] == {"inner": [{"a": 1}]}
    assert config.get(TrainingArguments).accelerator_config["api_key"] == "s3cr3t"  # pyright: ignore
    with pytest.raises(ConfigError) as caught:
        load_run_config(
            {**BASE, "my_token": "s3cr3t", "lora_rank": SECRET, "push_to_hub_token": ["s3cr3t"], "x": SECRET}
        )
    assert "s3cr3t" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_keys_without_effect_are_mentioned() -> None:
    config = load_run_config({**BASE, "finetuning_type": "full", "lora_rank": 4, "galore_rank": 4, "vllm_maxlen": 99})
    assert set(config.notices) == {
        "lora_rank has no effect with finetuning_type: full",
        "galore_rank has no effect with use_galore: false",
        "vllm_maxlen has no effect with infer_backend: huggingface",
    }


def test_keys_of_another_command_are_mentioned() -> None:
    assert load_run_config({**BASE, "export_dir": "x", "export_size": 1}).notices == (
        "export_dir, export_size have no effect in `train`: `export` would read it",
    )
    assert load_run_config({"model_name_or_path": "x", "export_dir": "y"}, "export").notices == ()


def test_read_args_gives_values_that_parse_to_the_same(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "model_name_or_path: x\noutput_dir: y\neval_strategy: no\nresume_from_checkpoint: null\nwarmup_ratio: 0.1\n"
    )
    read = hparams.read_args([str(file), "lora_target=a,b", "learning_rate=1e-4"])
    assert read == {
        "model_name_or_path": "x",
        "output_dir": "y",
        "eval_strategy": "no",
        "resume_from_checkpoint": None,
        "warmup_ratio": 0.1,
        "lora_target": ("a", "b"),
        "learning_rate": 1e-4,
    }
    assert hparams.get_train_args(read) == hparams.get_train_args([str(file), "lora_target=a,b", "learning_rate=1e-4"])
    loaded = yaml.safe_load(file.read_text())
    assert loaded["eval_strategy"] is False
    assert hparams.get_train_args(loaded)[2].eval_strategy == "no"


def test_read_given_takes_keys_that_are_no_words() -> None:
    assert "1" in read_given({1: 2})  # pyright: ignore
