"""Row N2 for the stages that other files do not run on two processes: they learn what one process learns."""

import json
from pathlib import Path
from typing import Any

import pytest
from stage_runs import history, saved_weights, stage_keys
from test_two_ranks import SCRIPTS, start
from torch.testing import assert_close


FIXED_ANSWERS = """
from dataclasses import replace
from llamafactory.train.plugins import STAGES
from llamafactory.train.rollouts.generation import Answer

class Fixed:
    def generate(self, models, prompts, seed):
        ends = [tuple(prompt[:index % 4 + 1]) for index, prompt in enumerate(prompts)]
        return [Answer(list(prompt), list(end), False) for prompt, end in zip(prompts, ends)]

def rollout(context):
    made = STAGES.get("grpo").rollout(context)
    return replace(made, maker=replace(made.maker, engine=Fixed()))

STAGES.register("grpo_fixed", replace(STAGES.get("grpo"), name="grpo_fixed", rollout=rollout))
"""
"""Answers that follow from the prompt alone: what is sampled depends on the process that samples."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "method"), [("pt", "full"), ("rm", "full"), ("rm", "lora"), ("kto", "full"), ("grpo", "lora")]
)
def test_n2_two_ranks_equal_one(tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path, stage: str, method: str):
    folders = []
    for num_ranks in (1, 2):
        out = tmp_path / f"ranks{num_ranks}"
        keys: dict[str, Any] = stage_keys(stage, method, tiny_llama_dir, demo_dataset_dir, out, val_size=5)
        keys |= {"optim": "sgd", "learning_rate": 0.1, "lora_dropout": 0.0, "save_strategy": "no", "do_eval": True}
        keys["per_device_train_batch_size"] = 4 // num_ranks
        if stage == "grpo":
            (tmp_path / "fixed.py").write_text(FIXED_ANSWERS, encoding="utf-8")
            keys |= {"stage": "grpo_fixed", "plugins": str(tmp_path / "fixed.py"), "grpo_loss": "dapo"}
            keys["grpo_buffer_size"] = 1  # else the batches of a step are drawn on each process
        (tmp_path / f"{num_ranks}.json").write_text(json.dumps(keys), encoding="utf-8")
        processes = start(SCRIPTS / "run_keys.py", num_ranks, str(tmp_path / f"{num_ranks}.json"))
        assert [process.wait(timeout=300) for process in processes] == [0] * num_ranks
        folders.append(out)

    before, one, two = (saved_weights(folder) for folder in (tiny_llama_dir, *folders))
    assert (
        max(
            (weight - before[name]).abs().max() if name in before else weight.abs().max()
            for name, weight in one.items()
        )
        > 1e-3
    )
    for name, weight in one.items():
        assert_close(two[name], weight, rtol=0, atol=1e-6, msg=name)
    for mine, theirs in zip(*(history(folder) for folder in folders), strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert theirs[name] == pytest.approx(mine[name], abs=1e-4), name
