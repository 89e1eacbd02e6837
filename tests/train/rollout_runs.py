"""Tiny runs of the stages that learn from their own answers."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from llamafactory.train.tuner import run_exp


REWARD_FILE = '''
def letters(prompts, completions, **columns):
    """More of the letter o is better."""
    return [float(text.count("o")) for text in completions]


def odd(completions):
    return [None if len(text) % 2 else 1.0 for text in completions]


def wrong(completions):
    return [1.0]
'''


def rollout_keys(model: Path, data: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """A run of PPO, or of another stage, on the CPU."""
    rewards = folder / "rewards.py"
    rewards.write_text(REWARD_FILE, encoding="utf-8")
    return {
        "model_name_or_path": str(model),
        "stage": "ppo",
        "do_train": True,
        "finetuning_type": "full",
        "dataset": "tiny_alpaca",
        "dataset_dir": str(data),
        "template": "chatml",
        "cutoff_len": 128,
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "max_steps": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "disable_tqdm": True,
        "use_cpu": True,
        "padding_free": True,
        "max_new_tokens": 12,
        "reward_funcs": f"{rewards}:letters",
        **changes,
    }


def run(keys: dict[str, Any]) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Return the weights that a run leaves, value head included, and what it logged."""
    run_exp(keys)
    out = Path(keys["output_dir"])
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(out.glob("*.safetensors")):
        weights |= load_file(path)
    history = json.loads((out / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return weights, [entry for entry in history if "loss" in entry]


def stop_after(keys: dict[str, Any], step: int) -> dict[str, Any]:
    """Run, and return the keys of a run that goes on from the checkpoint at a step."""
    run_exp(keys)
    out = Path(keys["output_dir"])
    for name in ("train_results.json", "all_results.json"):
        (out / name).unlink()
    return {**keys, "resume_from_checkpoint": str(out / f"checkpoint-{step}")}
