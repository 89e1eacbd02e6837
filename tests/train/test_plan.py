"""`plan`: what it says, that it says it without weights, and that it leaves output_dir alone."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamafactory.data.batch_plan import BatchSize
from llamafactory.data.lengths import SequenceLengths
from llamafactory.train.choices import largest_batch
from llamafactory.train.planning.making import make_plan


GIB = 2**30


def config(model: Path, datasets: Path, out: Path, **values: Any) -> dict[str, Any]:
    return {
        "model_name_or_path": str(model),
        "dataset": "tiny_alpaca",
        "dataset_dir": str(datasets),
        "output_dir": str(out),
        "do_train": True,
        "cutoff_len": 64,
        "per_device_train_batch_size": 4,
        "lora_rank": 2,
        "report_to": "none",
        **values,
    }


@pytest.fixture
def bare_llama_dir(tmp_path: Path, tiny_llama_dir: Path) -> Path:
    """A folder with nothing but a config."""
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "config.json").write_text((tiny_llama_dir / "config.json").read_text())
    return folder


def test_a_plan_tells_rows_parameters_and_memory(tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path) -> None:
    plan = make_plan(config(tiny_llama_dir, demo_dataset_dir, tmp_path / "out"), with_probe=False, free=GIB)

    assert plan.fits
    assert plan.data.num_rows == 24
    assert plan.data.steps_per_epoch == 6
    assert plan.model.trained < plan.model.parameters
    assert plan.memory.peak > plan.memory.parts["weights"] + plan.memory.parts["optimizer"]
    assert not (tmp_path / "out").exists()


def test_a_step_tells_the_time_and_leaves_nothing_behind(
    tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = logging.getLogger("llamafactory")
    root.addHandler(caplog.handler)  # it may propagate or not: lines may be there twice
    caplog.set_level(logging.INFO, logger=root.name)
    plan = make_plan(config(tiny_llama_dir, demo_dataset_dir, tmp_path / "out"))
    root.removeHandler(caplog.handler)

    assert caplog.messages[-1].startswith("Running a step")
    assert root.level == logging.INFO
    assert plan.probe is not None
    assert plan.probe.seconds_per_step > 0
    assert plan.probe.total_seconds == pytest.approx(plan.probe.seconds_per_step * (plan.data.num_steps or 0), rel=0.8)
    assert not (tmp_path / "out").exists()


def test_a_model_without_weights_and_tokenizer_can_be_planned(
    bare_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path
) -> None:
    plan = make_plan(config(bare_llama_dir, demo_dataset_dir, tmp_path / "out"), with_probe=False, free=GIB)

    assert plan.data.is_assumed
    assert plan.data.largest_batch_tokens == 4 * 64
    assert any("tokenizer" in note for note in plan.notes)


def test_a_run_that_does_not_fit_gets_changes_that_were_estimated_like_itself(
    bare_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path
) -> None:
    words = config(bare_llama_dir, demo_dataset_dir, tmp_path / "out", finetuning_type="full", cutoff_len=4096)
    words["disable_gradient_checkpointing"] = True
    whole = make_plan(words, with_probe=False, free=GIB)
    plan = make_plan(words, with_probe=False, free=int(whole.memory.peak))

    assert not plan.fits
    assert plan.suggestions
    for suggestion in plan.suggestions:
        again = make_plan({**words, **suggestion.changes}, with_probe=False, free=int(whole.memory.peak))
        assert again.memory.peak == suggestion.peak == plan.memory.peak - suggestion.saved


@pytest.mark.parametrize("stage", ["pt", "rm", "dpo", "kto"])
def test_every_stage_can_be_planned(tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path, stage: str) -> None:
    dataset = {"pt": "tiny_alpaca", "rm": "tiny_pairs", "dpo": "tiny_pairs", "kto": "tiny_marks"}[stage]
    words = config(tiny_llama_dir, demo_dataset_dir, tmp_path / "out", stage=stage, dataset=dataset)

    plan = make_plan({**words, "finetuning_type": "full"}, with_probe=False, free=GIB)

    assert plan.stage == stage
    assert bool(plan.memory.parts["helpers"]) == (stage in ("dpo", "kto"))


def test_the_command_prints_one_json_object(tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path) -> None:
    words = [f"{name}={value}" for name, value in config(tiny_llama_dir, demo_dataset_dir, tmp_path / "out").items()]
    command = [sys.executable, "-m", "llamafactory.cli", "plan", "--json", "--no-probe", *words]

    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)

    found = json.loads(done.stdout)
    assert found["version"] == 1
    assert found["fits"] is True
    assert found["memory"]["parts"]["weights"] > 0
    assert found["probe"] is None


@pytest.mark.parametrize(("pads", "tokens"), [(True, 2 * (9 + 5)), (False, 9 + 7 + 2 * 5)])
def test_the_largest_batch_has_the_answers_that_are_written(pads: bool, tokens: int) -> None:
    lengths = SequenceLengths({"": np.array([3, 9, 7])})

    assert largest_batch(lengths, BatchSize(num_rows=2, pads=pads), num_written=5) == tokens
