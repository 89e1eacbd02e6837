"""Tiny runs of every stage from one table: what a stage needs beside the keys that all of them share."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback


REWARD = "def letters(completions):\n    return [float(text.count('o')) for text in completions]\n"
PAIRS = {"dataset": "tiny_pairs", "template": "chatml"}
TEXTS = {"dataset": "tiny_alpaca", "template": "chatml"}
ROLLOUTS = {**TEXTS, "max_new_tokens": 5, "learning_rate": 3e-3}
STAGES: dict[str, dict[str, Any]] = {
    "pt": {"dataset": "tiny_alpaca", "cutoff_len": 24},
    "sft": TEXTS,
    "rm": PAIRS,
    "dpo": {**PAIRS, "pref_bco_weight": 0.5},  # its running mean is one more thing to restore
    "kto": {"dataset": "tiny_marks", "template": "chatml"},
    "ppo": {**ROLLOUTS, "ppo_buffer_size": 2, "ppo_epochs": 2, "ppo_score_norm": True},  # 4 steps a rollout
    "grpo": {**ROLLOUTS, "grpo_buffer_size": 2, "grpo_epochs": 2, "num_generations": 4, "grpo_beta": 0.01},
}
WRITERS = ("ppo", "grpo")
"""Stages that learn from what they write; they have no dropout, and their loader has no workers."""


def stage_keys(stage: str, method: str, model: Path, data: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """The keys of a run of 5 updates of 4 rows."""
    keys: dict[str, Any] = {
        "stage": stage,
        "finetuning_type": method,
        "model_name_or_path": str(model),
        "dataset_dir": str(data),
        "output_dir": str(out),
        "do_train": True,
        "cutoff_len": 128,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.01 if method == "lora" else 0.001,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.2,
        "max_steps": 5,
        "logging_steps": 1,
        "bf16": False,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    if method == "lora":
        keys |= {"lora_rank": 4, "lora_dropout": 0.0 if stage in WRITERS else 0.2}
    if method == "freeze":
        keys["freeze_trainable_layers"] = 1
    if stage in WRITERS:
        rewards = out.parent / "rewards.py"
        rewards.parent.mkdir(parents=True, exist_ok=True)
        rewards.write_text(REWARD, encoding="utf-8")
        keys["reward_funcs"] = f"{rewards}:letters"
    return {**keys, **STAGES[stage], **changes}


class SignalInStep(TrainerCallback):
    """Sends this process a signal between two micro-batches, as somebody might who is tired of waiting."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


def saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors that a run left, value head included."""
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    return weights


def history(folder: Path) -> list[dict[str, Any]]:
    """The log of a run without what depends on the clock."""
    entries = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    clocked = ("_runtime", "_per_second", "total_flos")
    return [{name: value for name, value in entry.items() if not name.endswith(clocked)} for entry in entries]


def assert_same(left: Any, right: Any) -> None:
    """Nested containers of tensors and numbers are equal, bit for bit."""
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    else:
        assert left == right or (left != left and right != right)
