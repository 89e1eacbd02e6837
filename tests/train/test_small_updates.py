"""Row N42: an update far below the steps of bfloat16 is not lost, because what learns is held in float32."""

from pathlib import Path
from typing import Any

import pytest
import torch
from stage_runs import saved_weights, stage_keys

from llamafactory.train.tuner import run_exp


RATE, STEPS = 1e-6, 20


def moves(model: Path, data: Path, out: Path, method: str, **changes: Any) -> torch.Tensor:
    """How far each trained weight went, in learning rates."""
    keys = stage_keys("sft", method, model, data, out, lora_dropout=0.0, save_strategy="no")
    del keys["bf16"]
    keys |= {"learning_rate": RATE, "lr_scheduler_type": "constant", "warmup_ratio": 0.0, "max_steps": STEPS}
    start = dict(saved_weights(model))
    if method == "lora":
        run_exp({**keys, "learning_rate": 0.0, "output_dir": str(out.parent / "start"), **changes})
        start = saved_weights(out.parent / "start")
    run_exp({**keys, **changes})
    after = saved_weights(out)
    start = {name: weight.to(after[name].dtype) for name, weight in start.items() if name in after}
    frozen = [name for name in after if method == "freeze" and not name.startswith("model.layers.1.")]
    assert all(torch.equal(after[name], start[name]) for name in frozen)
    trained = [name for name in after if name not in frozen and not name.endswith("embed_tokens.weight")]
    return torch.cat([(after[name].double() - start[name].double()).flatten() for name in trained]) / RATE


@pytest.mark.parametrize("method", ["full", "freeze", "lora"])
def test_n42_many_tiny_updates_in_bf16_add_up(
    tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path, method: str
):
    moved = moves(tiny_llama_dir, demo_dataset_dir, tmp_path / "out", method, bf16=True).abs()
    assert (moved > 0.5).double().mean() > 0.95  # nearly every weight, by about one rate a step while signs agree
    assert 3 < moved.median() < STEPS
    assert moved.max() < 1.5 * STEPS


def test_n42_weights_in_bfloat16_alone_lose_them(tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path):
    moved = moves(tiny_llama_dir, demo_dataset_dir, tmp_path / "out", "full", pure_bf16=True)
    assert (moved == 0).double().mean() > 0.8  # all but the weights nearest to zero
