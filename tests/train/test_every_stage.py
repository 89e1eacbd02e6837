"""What holds for every stage alike: a signal loses nothing (N40), runs repeat (N46), rates (N41), files, freeze."""

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from stage_runs import STAGES, WRITERS, SignalInStep, assert_same, history, saved_weights, stage_keys

from llamafactory.extras.errors import UserError
from llamafactory.train.checkpoints import list_checkpoints
from llamafactory.train.stage import STAGES as ROWS
from llamafactory.train.tuner import run_exp


COMMON = {
    "README.md",
    "all_results.json",
    "chat_template.jinja",
    "checkpoint-5",
    "data_report.json",
    "environment.json",
    "eval_results.json",
    "resolved_config.yaml",
    "tokenizer.json",
    "tokenizer_config.json",
    "train_results.json",
    "trainer_log.jsonl",
    "trainer_state.json",
}
OF_METHOD = {
    "full": {"config.json", "generation_config.json", "model.safetensors"},
    "lora": {"adapter_config.json", "adapter_model.safetensors", "training_loss.png"},
}


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("stage", STAGES)
def test_n40_n46_a_run_that_a_signal_stopped_ends_as_the_one_that_ran_through(
    tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path, stage: str, method: str
):
    whole, half = tmp_path / "whole", tmp_path / "half"
    changes = {"val_size": 4, "do_eval": True, "eval_strategy": "steps", "eval_steps": 2}
    keys = stage_keys(stage, method, tiny_llama_dir, demo_dataset_dir, whole, **changes)
    run_exp({**keys, "plot_loss": method == "lora"})
    number = signal.SIGINT if method == "full" else signal.SIGTERM
    with pytest.raises(SystemExit) as stop:
        run_exp({**keys, "output_dir": str(half)}, callbacks=[SignalInStep(number, 2)])
    assert stop.value.code == 128 + number
    assert [folder.name for folder in list_checkpoints(half)] == ["checkpoint-3"]
    assert not (half / "train_results.json").exists()
    workers = {} if stage in WRITERS else {"dataloader_num_workers": 1}
    run_exp({**keys, "output_dir": str(half), **workers})

    assert_same(saved_weights(whole), saved_weights(half))
    assert_same(history(whole), history(half))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        found = [torch.load(folder / "checkpoint-5" / name, weights_only=False) for folder in (whole, half)]
        for state in found:
            state.pop("python", None) if name == "rng_state.pth" else None  # nothing here draws from it
        assert_same(*[_tensors(state) for state in found])
    assert [line["current_steps"] for line in _lines(half)] == [line["current_steps"] for line in _lines(whole)]
    rates = [entry["learning_rate"] for entry in history(half) if "learning_rate" in entry]
    shares = [0, *(0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4))]  # N41: one step of five warms up
    assert rates == pytest.approx([keys["learning_rate"] * share for share in shares], abs=1e-12)
    _assert_files(whole, stage, method)
    _assert_card(whole, stage, method)


@pytest.mark.parametrize("stage", STAGES)
def test_freezing_trains_the_last_layer_and_the_heads_only(
    tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path, stage: str
):
    out = tmp_path / "out"
    run_exp(stage_keys(stage, "freeze", tiny_llama_dir, demo_dataset_dir, out, max_steps=3, save_strategy="no"))
    before, after = saved_weights(tiny_llama_dir), saved_weights(out)
    moved = {name for name, weight in before.items() if name in after and not torch.equal(weight, after[name])}
    assert moved == {name for name in before if name.startswith("model.layers.1.")}
    heads = {name for name, weight in after.items() if name not in before and weight.any()}
    assert heads == {"rm": {"score.weight"}, "ppo": {"v_head.summary.weight", "v_head.summary.bias"}}.get(stage, set())


@pytest.mark.parametrize("stage", STAGES)
def test_early_stopping_ends_a_run_that_does_not_improve_with_its_best_checkpoint(
    tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path, stage: str
):
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "val_size": 4}
    more = {"early_stopping_steps": 2, "save_total_limit": 1, "load_best_model_at_end": stage != "ppo"}
    still = {"learning_rate": 0.0} if stage not in WRITERS else {"learning_rate": 1e-9}
    keys = stage_keys(stage, "lora", tiny_llama_dir, demo_dataset_dir, tmp_path / "out", max_steps=9)
    run_exp({**keys, **every, **more, **still, "lr_scheduler_type": "constant"})
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text(encoding="utf-8"))
    assert (state["best_global_step"], state["global_step"]) == (1, 3)
    assert [folder.name for folder in list_checkpoints(tmp_path / "out")] == ["checkpoint-1"]
    name = "eval_reward" if stage in WRITERS else "eval_loss"
    assert state["best_metric"] == next(entry[name] for entry in state["log_history"] if name in entry)


def test_a_best_metric_that_nobody_measures_is_one_sentence(
    tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path
):
    keys = stage_keys("sft", "lora", tiny_llama_dir, demo_dataset_dir, tmp_path / "out", eval_strategy="steps")
    with pytest.raises(UserError, match=r"metric_for_best_model: accuracy is not measured .* one of loss, perplexity"):
        run_exp({**keys, "val_size": 4, "early_stopping_steps": 1, "metric_for_best_model": "accuracy"})


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()]


def _tensors(value: Any) -> Any:
    """Arrays of numpy's random state as lists."""
    if isinstance(value, dict):
        return {key: _tensors(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_tensors(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") and not isinstance(value, torch.Tensor) else value


def _assert_files(folder: Path, stage: str, method: str) -> None:
    found = {path.name for path in folder.iterdir()}
    wanted = COMMON | OF_METHOD[method]
    if stage == "rm" and method == "full":
        wanted = wanted - {"generation_config.json"}
    if stage in WRITERS:
        wanted |= {"rollout_samples.jsonl"}
    if stage == "ppo":
        wanted |= {"value_head.safetensors"}
    assert wanted <= found
    assert {name for name in found - wanted if not name.endswith(".png")} <= {"generation_config.json"}
    metrics = {"ppo": "eval_reward", "grpo": "eval_reward"}.get(stage, "eval_loss")
    results = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    assert {"train_loss", "epoch", metrics} <= results.keys()
    assert yaml.safe_load((folder / "resolved_config.yaml").read_text(encoding="utf-8"))["stage"] == stage


def _assert_card(folder: Path, stage: str, method: str) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["tags"] == ["llama-factory", method, stage]
    assert header["library_name"] == ("peft" if method == "lora" else "transformers")
    results = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    wanted = [ROWS.get(stage).title, str(STAGES[stage]["dataset"]), "| rows per update | 4 |", "| seed | 42 |"]
    wanted += [f"| {key} | " for key in ROWS.get(stage).card_keys]
    wanted += ["| lora_rank | 4 |", "| lora_dropout | "] if method == "lora" else []
    wanted += [f"| {name} | " for name in results]
    wanted += [f"| {name} | " for name in ("llamafactory", "torch", "transformers", "peft", "datasets", "tokenizers")]
    assert [text for text in wanted if text not in card] == []
