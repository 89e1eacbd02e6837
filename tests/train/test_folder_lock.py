"""An output_dir belongs to one run at a time, and to nobody once that run has ended, however it ended."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llamafactory.extras.errors import UserError
from llamafactory.train import folder_lock
from llamafactory.train.folder_lock import sole_writer


HOLDER = """
import sys, time
from pathlib import Path
from llamafactory.train.folder_lock import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "PATIENCE_SECONDS", 0.3)


@contextmanager
def holder(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with holder(folder) as process:
        with pytest.raises(UserError, match="being written by another run"), sole_writer(folder):
            pass
        assert folder.is_dir()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with sole_writer(folder):
            pass


def test_a_training_run_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    from llamafactory.train.tuner import run_exp

    config = {
        "model_name_or_path": str(tmp_path / "no-model"),
        "stage": "sft",
        "do_train": True,
        "dataset": "none",
        "dataset_dir": str(tmp_path),
        "output_dir": str(tmp_path / "out"),
        "report_to": "none",
    }
    with holder(tmp_path / "out"), pytest.raises(UserError, match="being written by another run"):
        run_exp(config)


def test_a_folder_that_nothing_was_written_to_goes_again(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no"), sole_writer(tmp_path / "new"):
        raise UserError("no")
    assert not (tmp_path / "new").exists()

    with sole_writer(tmp_path / "kept"):
        (tmp_path / "kept" / "file").touch()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["file"]


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(UserError, match="cannot be written"), sole_writer(tmp_path / "file" / "out"):
        pass
