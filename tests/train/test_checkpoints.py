"""Checkpoints are written aside and renamed; rotation, best model and stale folders."""

import inspect
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_trainer import make_rows, trained_weights
from transformers import Trainer, TrainerCallback

from llamafactory.extras.errors import UserError
from llamafactory.train.checkpoints import (
    EARLIER,
    UNFINISHED,
    checkpoint_step,
    is_complete,
    list_checkpoints,
    publish,
    remove_unfinished,
    rotate,
    set_aside,
)


def make_checkpoint(folder: Path, step: int, **state: Any) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    (checkpoint / "optimizer.pt").write_bytes(b"moments")
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step, **state}))
    return checkpoint


def names(folder: Path) -> list[str]:
    return [checkpoint.name for checkpoint in list_checkpoints(folder)]


def test_only_complete_folders_count_and_steps_sort_as_numbers(tmp_path: Path):
    for step in (10, 9, 100):
        make_checkpoint(tmp_path, step)
    (make_checkpoint(tmp_path, 200) / "trainer_state.json").write_text('{"global_step": 20')  # cut off
    (make_checkpoint(tmp_path, 300) / "model.safetensors").unlink()
    make_checkpoint(tmp_path, 400).rename(tmp_path / "checkpoint-400-copy")
    assert names(tmp_path) == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]


def test_publishing_gives_the_name_and_refuses_a_torso(tmp_path: Path):
    staged = make_checkpoint(tmp_path / UNFINISHED, 5)
    publish(staged, tmp_path / "checkpoint-5")
    assert is_complete(tmp_path / "checkpoint-5")
    assert not staged.exists()

    torso = make_checkpoint(tmp_path / UNFINISHED, 6)
    (torso / "trainer_state.json").unlink()
    with pytest.raises(UserError, match="not written completely"):
        publish(torso, tmp_path / "checkpoint-6")


def test_rotation_keeps_the_newest_and_the_best(tmp_path: Path):
    for step in range(1, 6):
        make_checkpoint(tmp_path, step)
    rotate(tmp_path, 3, str(tmp_path / "checkpoint-1"))
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-4", "checkpoint-5"]
    rotate(tmp_path, 1, str(tmp_path / "checkpoint-1"))
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-5"]
    rotate(tmp_path, 1, None)
    assert names(tmp_path) == ["checkpoint-5"]
    rotate(tmp_path, None, None)
    assert names(tmp_path) == ["checkpoint-5"]


def test_checkpoints_of_another_run_are_moved_not_deleted(tmp_path: Path):
    for step in (5, 10, 15):
        make_checkpoint(tmp_path, step)
    assert [path.name for path in set_aside(tmp_path, 5)] == ["checkpoint-10", "checkpoint-15"]
    assert names(tmp_path) == ["checkpoint-5"]
    assert names(tmp_path / EARLIER) == ["checkpoint-10", "checkpoint-15"]
    assert set_aside(tmp_path, 5) == []
    assert names(tmp_path / EARLIER) == ["checkpoint-10", "checkpoint-15"]


def test_remains_of_a_killed_run_are_removed(tmp_path: Path):
    make_checkpoint(tmp_path / UNFINISHED, 7)
    remove_unfinished(tmp_path)
    assert not (tmp_path / UNFINISHED).exists()


class Witness(TrainerCallback):
    """Notes what lies in output_dir under a checkpoint's name whenever something happens."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, bool]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for folder in Path(args.output_dir).glob("checkpoint-*"):
            self.seen.append((state.global_step, is_complete(folder)))


def test_trainer_writes_aside_rotates_and_ends_with_the_best(make_model: Callable[..., Any], make_trainer: Any):
    witness = Witness()
    model, rows = make_model(), make_rows(24)
    trainer = make_trainer(
        model,
        rows,
        eval_rows=rows,
        callbacks=[witness],
        metric_for_best_model="loss",
        greater_is_better=True,  # the loss falls, so the first checkpoint is the "best" one
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        save_total_limit=2,
        load_best_model_at_end=True,
    )
    trainer.train()
    out = make_trainer.output_dir
    best = trainer.state.best_global_step
    assert all(complete for _, complete in witness.seen)
    assert best == 1
    assert names(out) == [f"checkpoint-{best}", "checkpoint-6"]
    assert Path(trainer.state.best_model_checkpoint) == out / f"checkpoint-{best}"
    state = json.loads((out / f"checkpoint-{best}" / "trainer_state.json").read_text())
    assert Path(state["best_model_checkpoint"]) == out / f"checkpoint-{best}"
    assert not (out / UNFINISHED).exists()
    assert trainer.args.output_dir == str(out)

    loaded = type(model).from_pretrained(out / f"checkpoint-{best}")
    assert torch.equal(trained_weights(loaded), trained_weights(trainer.model))


def test_transformers_still_saves_the_way_the_override_counts_on():
    """`_save_checkpoint` is private; this fails when it is renamed or no longer follows `args.output_dir`."""
    method = Trainer._save_checkpoint
    assert list(inspect.signature(method).parameters) == ["self", "model", "trial"]
    source = inspect.getsource(method)
    for statement in (
        "run_dir = self._get_output_dir(trial=trial)",
        'checkpoint_folder = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"',
        "output_dir = os.path.join(run_dir, checkpoint_folder)",
        "self.state.save_to_json(os.path.join(output_dir, TRAINER_STATE_NAME))",
        "if self.args.push_to_hub:",
    ):
        assert statement in source
    assert "run_dir = self.args.output_dir" in inspect.getsource(Trainer._get_output_dir)


@pytest.mark.slow
def test_kill_at_any_moment_leaves_the_last_checkpoint_loadable(
    tiny_llama_dir: Path, make_model: Callable[..., Any], make_trainer: Any
):
    out = make_trainer.output_dir
    script = Path(__file__).parent / "endless_run.py"
    for pause in (0.0, 0.013, 0.031, 0.047):  # different moments of saving, which goes on all the time
        process = subprocess.Popen([sys.executable, str(script), str(tiny_llama_dir), str(out)])
        wait_for_step(out, process, last_step(out) + 3)
        time.sleep(pause)
        process.kill()
        process.wait()
        for checkpoint in out.glob("checkpoint-*"):
            assert is_complete(checkpoint), f"{checkpoint} is not complete after kill -9"

        model = make_model()
        trainer = make_trainer(model, make_rows(24), max_steps=10**6, callbacks=[StopNow()])
        trainer.train(resume_from_checkpoint=str(list_checkpoints(out)[-1]))
        assert not (out / UNFINISHED).exists()


class StopNow(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = True


def last_step(out: Path) -> int:
    return max((checkpoint_step(checkpoint) for checkpoint in list_checkpoints(out)), default=0)


def wait_for_step(out: Path, process: "subprocess.Popen[Any]", step: int) -> None:
    deadline = time.monotonic() + 120
    while last_step(out) < step:
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
