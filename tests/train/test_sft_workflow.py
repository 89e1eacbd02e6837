"""Supervised fine-tuning from a configuration to the folder it leaves."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from llamafactory.extras.errors import UserError
from llamafactory.train.tuner import run_exp


@pytest.fixture
def keys(tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path, monkeypatch: Any) -> dict[str, Any]:
    monkeypatch.setenv("LLAMAFACTORY_CACHE", str(tmp_path / "cache"))
    return {
        "model_name_or_path": str(tiny_llama_dir),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "dataset": "tiny_alpaca",
        "dataset_dir": str(demo_dataset_dir),
        "template": "chatml",
        "cutoff_len": 128,
        "output_dir": str(tmp_path / "out"),
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "max_steps": 4,
        "logging_steps": 1,
        "save_steps": 2,
        "bf16": False,
        "disable_tqdm": True,
        "use_cpu": True,
    }


def test_a_run_leaves_the_files_that_users_expect(keys: dict[str, Any], tmp_path: Path):
    out = tmp_path / "out"
    run_exp(
        {
            **keys,
            "val_size": 4,
            "do_eval": True,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "plot_loss": True,
            "compute_accuracy": True,
            "include_effective_tokens_per_second": True,
            "hf_hub_token": "hf_secretsecretsecret",
        }
    )
    names = {path.name for path in out.iterdir()}
    assert names == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "all_results.json",
        "chat_template.jinja",
        "checkpoint-2",
        "checkpoint-4",
        "data_report.json",
        "environment.json",
        "eval_results.json",
        "resolved_config.yaml",
        "tokenizer.json",
        "tokenizer_config.json",
        "train_results.json",
        "trainer_log.jsonl",
        "trainer_state.json",
        "training_eval_accuracy.png",
        "training_eval_loss.png",
        "training_loss.png",
    }
    results = json.loads((out / "all_results.json").read_text())
    for key in ("train_loss", "eval_loss", "eval_accuracy", "effective_tokens_per_sec", "epoch", "total_flos"):
        assert key in results
    report = json.loads((out / "data_report.json").read_text())
    assert report["datasets"][0]["num_kept"] == 24
    assert report["run"]["num_steps"] == 4
    for path in out.rglob("*"):
        assert not path.is_file() or b"hf_secretsecretsecret" not in path.read_bytes()
    assert yaml.safe_load((out / "resolved_config.yaml").read_text())["learning_rate"] == 0.01
    assert "torch" in json.loads((out / "environment.json").read_text())


def test_the_saved_configuration_repeats_the_run(keys: dict[str, Any], tmp_path: Path):
    run_exp(keys)
    run_exp([str(tmp_path / "out" / "resolved_config.yaml"), f"output_dir={tmp_path / 'again'}"])
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("out", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_finished_run_is_refused_trained_further_or_begun_anew(keys: dict[str, Any], tmp_path: Path):
    out = tmp_path / "out"
    run_exp(keys)
    saved = (out / "adapter_model.safetensors").read_bytes()
    with pytest.raises(UserError, match="already holds a finished run"):
        run_exp(keys)
    with pytest.raises(UserError, match="already at step 4"):
        run_exp({**keys, "resume_from_checkpoint": True})
    assert (out / "adapter_model.safetensors").read_bytes() == saved

    run_exp({**keys, "resume_from_checkpoint": True, "max_steps": 6})
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 6
    run_exp({**keys, "overwrite_output_dir": True})
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 4
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert (out / "adapter_model.safetensors").read_bytes() == saved


def test_an_unfinished_run_goes_on_by_itself_to_the_same_result(keys: dict[str, Any], tmp_path: Path):
    run_exp(keys)
    whole = load_file(tmp_path / "out" / "adapter_model.safetensors")
    half = {**keys, "output_dir": str(tmp_path / "half")}
    run_exp(half)
    for name in ("train_results.json", "all_results.json", "adapter_model.safetensors"):
        (tmp_path / "half" / name).unlink()
    (tmp_path / "half" / "checkpoint-4" / "trainer_state.json").unlink()  # as if it had been killed while saving
    run_exp(half)
    resumed = load_file(tmp_path / "half" / "adapter_model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    steps = [json.loads(line)["current_steps"] for line in (tmp_path / "half" / "trainer_log.jsonl").open()]
    assert steps == [1, 2, 3, 4, 4]


@pytest.mark.parametrize("method", ["full", "freeze"])
def test_models_are_saved_whole_and_keep_their_config(keys: dict[str, Any], tmp_path: Path, method: str):
    from transformers import AutoModelForCausalLM

    run_exp({**keys, "finetuning_type": method, "freeze_trainable_layers": 1})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.use_cache is True
    assert not (tmp_path / "out" / "training_args.bin").exists()


def test_predictions_are_generated_in_row_order_and_scored(keys: dict[str, Any], tmp_path: Path):
    answers = {}
    for batch in (1, 5):
        out = tmp_path / f"predict{batch}"
        run_exp(
            {
                **{key: value for key, value in keys.items() if key != "dataset"},
                "do_train": False,
                "do_predict": True,
                "predict_with_generate": True,
                "eval_dataset": "tiny_alpaca",
                "per_device_eval_batch_size": batch,
                "output_dir": str(out),
                "do_sample": False,
                "max_new_tokens": 5,
            }
        )
        lines = (out / "generated_predictions.jsonl").read_text(encoding="utf-8").splitlines()
        answers[batch] = [json.loads(line) for line in lines]
        results = json.loads((out / "predict_results.json").read_text())
        assert {"predict_rouge-1", "predict_rouge-2", "predict_rouge-l", "predict_bleu-4"} <= results.keys()
    assert answers[1] == answers[5]
    assert len(answers[1]) == 24
    assert list(answers[1][0]) == ["prompt", "predict", "label"]
    assert answers[1][1]["label"].endswith("row 1.")
    assert answers[1][0]["prompt"].endswith("<|im_start|>assistant\n")


def test_missing_metric_packages_are_named_before_the_model_is_loaded(
    keys: dict[str, Any], tmp_path: Path, monkeypatch: Any
):
    monkeypatch.setattr("llamafactory.extras.packages.is_available", lambda module: module != "rouge_score")
    with pytest.raises(UserError, match=r'rouge_score.*pip install "llamafactory\[metrics\]"'):
        run_exp(
            {
                **keys,
                "model_name_or_path": str(tmp_path / "no-model"),
                "do_predict": True,
                "predict_with_generate": True,
                "val_size": 2,
            }
        )
