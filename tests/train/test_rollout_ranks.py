"""Rows N2, N35 and N40 for the stages with rollouts: two processes learn what one learns, and resume bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rollout_runs import rollout_keys
from safetensors.torch import load_file
from test_two_ranks import SCRIPTS, start
from torch.testing import assert_close


def run_ranks(keys: dict[str, Any], num_ranks: int) -> dict[str, torch.Tensor]:
    out = Path(keys["output_dir"])
    file = out.with_suffix(".json")
    file.write_text(json.dumps(keys), encoding="utf-8")
    processes = start(SCRIPTS / "run_keys.py", num_ranks, str(file))
    assert [process.wait(timeout=300) for process in processes] == [0] * num_ranks
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(out.glob("*.safetensors")):
        weights |= load_file(path)
    return weights


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_n2_ppo_on_two_ranks_equals_one(tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path, method: str):
    found = []
    for num_ranks in (1, 2):
        keys = rollout_keys(
            tiny_llama_dir,
            demo_dataset_dir,
            tmp_path,
            finetuning_type=method,
            per_device_train_batch_size=8 // num_ranks,
            output_dir=str(tmp_path / f"ranks{num_ranks}"),
            do_sample=False,  # so that the answers do not depend on the rank that writes them
            ppo_whiten_rewards=True,
            ppo_score_norm=True,
            ppo_epochs=2,
            optim="sgd",
            learning_rate=0.1,
        )
        found.append(run_ranks(keys, num_ranks))
    assert found[0].keys() == found[1].keys()
    for name, weight in found[0].items():
        assert_close(found[1][name], weight, rtol=0, atol=1e-5, msg=name)


@pytest.mark.slow
def test_n40_grpo_on_two_ranks_goes_on_in_the_middle_of_a_rollout(
    tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path
):
    keys = rollout_keys(
        tiny_llama_dir,
        demo_dataset_dir,
        tmp_path,
        stage="grpo",
        num_generations=4,
        grpo_loss="dapo",
        grpo_epochs=2,
        per_device_train_batch_size=4,
        max_steps=4,
        save_strategy="steps",
        save_steps=1,
    )
    whole = run_ranks({**keys, "output_dir": str(tmp_path / "whole")}, 2)
    half = tmp_path / "half"
    run_ranks({**keys, "output_dir": str(half)}, 2)
    (half / "train_results.json").unlink()
    states = sorted(path.name for path in (half / "checkpoint-1").glob("rollout_*"))
    assert states == ["rollout_0.pt", "rollout_1.pt"]
    resumed = run_ranks({**keys, "output_dir": str(half), "resume_from_checkpoint": str(half / "checkpoint-1")}, 2)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
