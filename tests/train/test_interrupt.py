"""Ctrl-C and SIGTERM save a checkpoint that can be resumed; the second signal of a kind is not held up."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_trainer import make_rows, trained_weights
from transformers import TrainerCallback

from llamafactory.extras.env import child_environment
from llamafactory.train.callbacks.interrupt import Interrupt, InterruptCallback, TrainingInterruptedError
from llamafactory.train.checkpoints import list_checkpoints


class SignalAt(TrainerCallback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, number: int, step: int) -> None:
        self.number = number
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            signal.raise_signal(self.number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_resumed_run_equals_the_uninterrupted_one(
    make_model: Callable[..., Any], make_trainer: Any, number: int, code: int, capfd: pytest.CaptureFixture[str]
):
    arguments = {"num_train_epochs": 2, "save_total_limit": 1}
    whole = make_trainer(make_model(), make_rows(12), **arguments, output_dir=str(make_trainer.output_dir / "whole"))
    whole.train()

    interrupt = Interrupt()
    callbacks = [InterruptCallback(interrupt), SignalAt(number, 2)]
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    trainer = make_trainer(make_model(), make_rows(12), callbacks=callbacks, **arguments)
    trainer.interrupt = interrupt
    with pytest.raises(TrainingInterruptedError) as stop, interrupt:
        trainer.train()
    assert stop.value.exit_code == code
    assert {kind: signal.getsignal(kind) for kind in before} == before
    assert "is finished and saved first" in capfd.readouterr().err
    assert [folder.name for folder in list_checkpoints(make_trainer.output_dir)] == ["checkpoint-3"]

    resumed = make_trainer(make_model(), make_rows(12), **arguments)
    resumed.train(resume_from_checkpoint=str(make_trainer.output_dir / "checkpoint-3"))
    assert torch.equal(trained_weights(resumed.model), trained_weights(whole.model))


def test_the_second_signal_of_a_kind_gets_the_default_action_and_another_kind_does_not():
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.own == interrupt.due() == signal.SIGINT
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
        signal.raise_signal(signal.SIGTERM)  # torchrun's echo of Ctrl-C: still the same request
        assert interrupt.due() == signal.SIGINT


def test_what_the_ranks_agreed_on_decides():
    interrupt = Interrupt()
    interrupt.agree(torch.tensor(float(signal.SIGTERM)))
    assert interrupt.own == 0
    assert interrupt.due() == signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_ends_with_the_code_of_the_signal_and_says_how_to_go_on(
    tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path, number: int, code: int
):
    config = {
        "model_name_or_path": str(tiny_llama_dir),
        "stage": "sft",
        "do_train": True,
        "dataset": "tiny_alpaca",
        "dataset_dir": str(demo_dataset_dir),
        "template": "chatml",
        "output_dir": str(tmp_path / "out"),
        "num_train_epochs": 100000,
        "logging_steps": 1,
        "use_cpu": True,
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "llamafactory.launcher", "train"]
    environment = child_environment(OMP_NUM_THREADS="1", LLAMAFACTORY_CACHE=str(tmp_path / "cache"))
    process = subprocess.Popen(
        [*command, str(tmp_path / "run.yaml")], env=environment, stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "out" / "trainer_log.jsonl"
    deadline = time.monotonic() + 120
    while not log.is_file():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, number)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == code
    (checkpoint,) = list_checkpoints(tmp_path / "out")
    assert f"resume_from_checkpoint={checkpoint}" in told
    assert not (tmp_path / "out" / "train_results.json").exists()

    step = int(checkpoint.name.split("-")[1])
    words = [str(tmp_path / "out" / "resolved_config.yaml"), f"resume_from_checkpoint={checkpoint}"]
    done = subprocess.run(
        [*command, *words, f"max_steps={step + 2}"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "train_results.json").is_file()
