"""What tests of jobs share: a folder to work in, the values of a tiny run, and waiting for one."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llamafactory.webui import jobs
from llamafactory.webui.jobs import Options, Run, Status
from llamafactory.webui.jobs.queue import job_folders
from llamafactory.webui.places import Places


WAIT_SECONDS = 300.0


def make_places(work: Path, model: Path | None = None, data: Path | None = None) -> Places:
    """Make a folder like the one that a board is started in."""
    if model is not None:
        shutil.copytree(model, work / "models" / "tiny")
    if data is not None:
        shutil.copytree(data, work / "data")
    (work / "saves").mkdir()
    return Places(work=work.resolve())


def run_values(name: str, **more: Any) -> dict[str, Any]:
    """Return the keys of a LoRA run that takes a second of computing, in saves/tiny/lora/<name>."""
    return {
        "model_name_or_path": "models/tiny",
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "dataset": "tiny_alpaca",
        "dataset_dir": "data",
        "template": "chatml",
        "output_dir": f"saves/tiny/lora/{name}",
        "max_steps": 3,
        "logging_steps": 1,
        "use_cpu": True,
        **more,
    }


def endless(name: str, **more: Any) -> dict[str, Any]:
    """Return the keys of a run that only ends when it is stopped."""
    return run_values(name, max_steps=10**6, save_steps=10**6, **more)


def wait_until(run_dir: Path, is_there: Callable[[Status], bool], seconds: float = WAIT_SECONDS) -> Status:
    """Read a run until something is true of it."""
    deadline = time.monotonic() + seconds
    while True:
        status = jobs.read_status(run_dir)
        if is_there(status):
            return status
        assert time.monotonic() < deadline, status
        assert not status.is_over, status
        time.sleep(0.1)


def wait_over(run_dir: Path) -> Status:
    return wait_until(run_dir, lambda status: status.is_over)


def is_training(status: Status) -> bool:
    return bool(status.progress.step)


def wait_gone(is_gone: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_gone():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def plugin_values(name: str, plugin: str, **more: Any) -> dict[str, Any]:
    """Return the keys of a run that imports acts/<plugin>.py before anything heavy."""
    return run_values(name, plugins=f"acts/{plugin}.py", **more)


@dataclass(frozen=True)
class Acts:
    """Runs that do what a few lines of Python say, and nothing else."""

    places: Places

    def write(self, plugin: str, code: str) -> None:
        folder = self.places.work / "acts"
        folder.mkdir(exist_ok=True)
        (folder / f"{plugin}.py").write_text(code, encoding="utf-8")

    def start(self, name: str, plugin: str, code: str, **options: Any) -> Run:
        self.write(plugin, code)
        return jobs.start(plugin_values(name, plugin), Options(**options), places=self.places)


def give_devices(monkeypatch: pytest.MonkeyPatch, folder: Path, count: int) -> None:
    """Let the driver's tool tell of some accelerators."""
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir()
    lines = [f"echo '{index}, NVIDIA H200, 143771, 1024'" for index in range(count)]
    program.write_text("\n".join(["#!/bin/sh", *lines, "echo broken", ""]))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def end_everything(places: Places) -> None:
    """End what a test may have left."""
    left = list(job_folders(places.saves))
    for run_dir in left:
        jobs.cancel(run_dir)
    for run_dir in left:
        jobs.abort(run_dir, grace=0)
    for run_dir in left:
        wait_over(run_dir)
