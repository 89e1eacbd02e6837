"""Where a run starts, decided from the files in output_dir alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_checkpoints import make_checkpoint

from llamafactory.extras.errors import UserError
from llamafactory.hparams import TrainingArguments
from llamafactory.train.checkpoints import EARLIER, UNFINISHED
from llamafactory.train.run_plan import open_folder, plan_run


def arguments(output_dir: Path, **changes: Any) -> TrainingArguments:
    return TrainingArguments(**{"output_dir": str(output_dir), "do_train": True, **changes})


def finish(output_dir: Path) -> None:
    output_dir.mkdir(exist_ok=True)
    (output_dir / "train_results.json").write_text("{}")


def test_an_empty_or_missing_folder_starts_afresh(tmp_path: Path):
    assert plan_run(arguments(tmp_path / "new")).checkpoint is None
    assert plan_run(arguments(tmp_path)).checkpoint is None


def test_a_finished_run_is_refused_before_anything_is_loaded(tmp_path: Path):
    finish(tmp_path)
    make_checkpoint(tmp_path, 10)
    with pytest.raises(UserError, match="already holds a finished run"):
        plan_run(arguments(tmp_path))
    assert plan_run(arguments(tmp_path, overwrite_output_dir=True)).checkpoint is None
    assert plan_run(arguments(tmp_path, do_train=False)).checkpoint is None
    assert not list(tmp_path.glob("_*"))


def test_an_unfinished_run_goes_on_from_its_last_complete_checkpoint_and_says_so(tmp_path: Path):
    make_checkpoint(tmp_path, 5)
    last = make_checkpoint(tmp_path, 10)
    (make_checkpoint(tmp_path, 15) / "trainer_state.json").unlink()
    plan = plan_run(arguments(tmp_path))
    assert plan.checkpoint == last
    assert str(last) in plan.notice
    assert plan_run(arguments(tmp_path, resume_from_checkpoint=False)).checkpoint is None


def test_weights_without_a_checkpoint_are_not_written_over(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"someone's model")
    with pytest.raises(UserError, match="holds model weights but no checkpoint"):
        plan_run(arguments(tmp_path))


def test_a_file_is_no_output_dir(tmp_path: Path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="is a file"):
        plan_run(arguments(tmp_path / "out"))


@pytest.mark.parametrize("asked", [True, "path"])
def test_an_asked_for_checkpoint_is_checked(tmp_path: Path, asked: Any):
    finish(tmp_path)
    with pytest.raises(UserError, match=r"no complete checkpoint|there is no folder"):
        plan_run(arguments(tmp_path, resume_from_checkpoint=asked if asked is True else str(tmp_path / "nowhere")))
    checkpoint = make_checkpoint(tmp_path, 10, epoch=1.0)
    asked = asked if asked is True else str(checkpoint)
    assert plan_run(arguments(tmp_path, resume_from_checkpoint=asked)).checkpoint == checkpoint
    for end in ({"num_train_epochs": 1}, {"max_steps": 10}):
        with pytest.raises(UserError, match=r"already at step 10 .*raise num_train_epochs or max_steps"):
            plan_run(arguments(tmp_path, resume_from_checkpoint=asked, **end))
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no complete checkpoint|not a complete checkpoint"):
        plan_run(arguments(tmp_path, resume_from_checkpoint=asked))


def test_weights_alone_cannot_be_resumed(tmp_path: Path):
    (make_checkpoint(tmp_path, 10, epoch=1.0) / "optimizer.pt").unlink()
    for asked in (None, True):
        with pytest.raises(UserError, match="save_only_model"):
            plan_run(arguments(tmp_path, resume_from_checkpoint=asked))


def test_opening_a_folder_leaves_nothing_that_belongs_to_another_run(tmp_path: Path):
    finish(tmp_path)
    for step in (5, 10):
        make_checkpoint(tmp_path, step)
    make_checkpoint(tmp_path / UNFINISHED, 15)
    (tmp_path / "notes.txt").write_text("mine")
    open_folder(tmp_path, 5)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [EARLIER, "checkpoint-5", "notes.txt"]
    assert json.loads((tmp_path / EARLIER / "checkpoint-10" / "trainer_state.json").read_text())["global_step"] == 10
