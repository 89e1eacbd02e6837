"""A signal loses nothing of PPO or GRPO, whether answers are being written and judged or learned from."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rollout_runs import rollout_keys, run
from transformers import TrainerCallback

from llamafactory.train.tuner import run_exp


SIGNALLING = """
import signal

calls = []


def letters(completions):
    calls.append(1)
    if len(calls) == {call}:
        signal.raise_signal({number})
    return [float(text.count("o")) for text in completions]
"""


class SignalInPass(TrainerCallback):
    """Sends this process a signal between the micro-batches of the update that begins after `step` updates."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.step = -1
            signal.raise_signal(self.number)


@pytest.mark.parametrize(
    ("stage", "place", "method"),
    [("ppo", "rollout", "full"), ("ppo", "update", "lora"), ("grpo", "rollout", "lora"), ("grpo", "update", "full")],
)
def test_n40_a_signal_in_a_rollout_or_an_update_loses_nothing(
    tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path, stage: str, place: str, method: str
):
    number, code, last = {"rollout": (signal.SIGTERM, 143, 5), "update": (signal.SIGINT, 130, 4)}[place]
    common = rollout_keys(
        tiny_llama_dir,
        demo_dataset_dir,
        tmp_path,
        stage=stage,
        finetuning_type=method,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=7,
        **({"ppo_buffer_size": 2, "ppo_epochs": 2} if stage == "ppo" else {}),  # 4 updates a rollout
        **({"grpo_buffer_size": 2, "grpo_epochs": 2, "num_generations": 4} if stage == "grpo" else {}),
    )
    whole, log = run({**common, "output_dir": str(tmp_path / "whole")})

    file = tmp_path / "signalling.py"
    file.write_text(SIGNALLING.format(call=2 if place == "rollout" else 0, number=int(number)), encoding="utf-8")
    keys = {**common, "reward_funcs": f"{file}:letters"}
    with pytest.raises(SystemExit) as stop:
        run_exp(keys, [SignalInPass(number, 3)] if place == "update" else None)
    assert stop.value.code == code
    out = Path(keys["output_dir"])
    (checkpoint,) = out.glob("checkpoint-*")
    assert checkpoint.name == f"checkpoint-{last}"  # the update under way, or the first one of the new rollout

    resumed, second = run({**keys, "resume_from_checkpoint": str(checkpoint)})
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert log == second
    samples = [(folder / "rollout_samples.jsonl").read_text(encoding="utf-8") for folder in (tmp_path / "whole", out)]
    assert samples[0] == samples[1]
