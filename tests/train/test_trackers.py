"""What trackers get: read back from their files; a tracker that is not there is one sentence."""

from pathlib import Path
from typing import Any

import pytest
from stage_runs import history, stage_keys

from llamafactory.extras.errors import UserError
from llamafactory.train.trackers import check_trackers
from llamafactory.train.tuner import run_exp


def test_tensorboard_holds_every_logged_value(tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    changes: dict[str, Any] = {"val_size": 4, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no"}
    changes |= {"report_to": "tensorboard", "run_name": "my-run", "logging_dir": str(tmp_path / "curves")}
    run_exp(stage_keys("dpo", "lora", tiny_llama_dir, demo_dataset_dir, tmp_path / "out", **changes))

    files = sorted((tmp_path / "curves").rglob("events*"))
    found: dict[str, dict[int, float]] = {}
    for file in files:
        events = reader.EventAccumulator(str(file)).Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, {}).update((event.step, event.value) for event in events.Scalars(tag))
    entries = [entry for entry in history(tmp_path / "out") if "loss" in entry or "eval_loss" in entry]
    assert len(entries) >= 7
    for entry in entries:
        for name, value in entry.items():
            if name in ("step", "epoch"):
                continue
            tag = f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
            assert found[tag][entry["step"]] == pytest.approx(value, rel=1e-6), tag
    assert {"train/rewards/margins", "eval/rewards/margins", "train/learning_rate"} <= found.keys()


def test_a_tracker_that_is_unknown_or_missing_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    check_trackers(("none",))
    check_trackers(("all",))
    with pytest.raises(UserError, match=r"report_to: tensorbord is no tracker; did you mean 'tensorboard'\?"):
        check_trackers(("tensorbord",))
    monkeypatch.setattr("llamafactory.train.trackers.is_available", lambda module: False)
    monkeypatch.setattr("llamafactory.extras.packages.is_available", lambda module: False)
    with pytest.raises(UserError, match=r'report_to: wandb needs the package .*pip install "llamafactory\[wandb]"'):
        check_trackers(("wandb",))
    with pytest.raises(UserError, match="report_to: neptune needs the package 'neptune'"):
        check_trackers(("neptune",))
