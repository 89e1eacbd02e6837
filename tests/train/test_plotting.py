"""Curves from trainer_state.json."""

import json
import math
from pathlib import Path

import pytest

from llamafactory.extras.errors import UserError
from llamafactory.extras.plotting import plot_loss, smooth


def write_history(folder: Path, history: list[dict[str, float]]) -> None:
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))


def test_each_logged_value_becomes_a_picture(tmp_path: Path):
    history = [{"loss": 3 - step / 10, "step": step} for step in range(1, 20)]
    history += [{"eval_loss": 2.0, "step": 10}, {"rewards/accuracies": 0.5, "step": 5}, {"loss": math.nan, "step": 20}]
    write_history(tmp_path, history)
    files = plot_loss(str(tmp_path), ["loss", "eval_loss", "rewards/accuracies", "absent"])
    assert [file.name for file in files] == [
        "training_loss.png",
        "training_eval_loss.png",
        "training_rewards_accuracies.png",
    ]
    for file in files:
        assert file.read_bytes().startswith(b"\x89PNG")
        assert file.stat().st_size > 5000


def test_smoothing_follows_the_formula():
    values = [1.0, 0.0, 0.5]
    weight = 1.8 * (1 / (1 + math.exp(-0.05 * 3)) - 0.5)
    second = 1.0 * weight
    assert smooth(values) == pytest.approx([1.0, second, second * weight + (1 - weight) * 0.5])
    assert smooth([]) == []


def test_a_missing_history_is_one_sentence(tmp_path: Path):
    with pytest.raises(UserError, match="no readable log history"):
        plot_loss(tmp_path)
