"""Options that change how a model computes while it learns: trained, resumed bit for bit, and answered with."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from model_making import load, logits
from stage_runs import assert_same, history, saved_weights, stage_keys

from llamafactory.train.tuner import run_exp


def run(stage: str, method: str, model: Path, data: Path, out: Path, **changes: Any) -> Path:
    run_exp(stage_keys(stage, method, model, data, out, **changes))
    return out


def resumed(stage: str, method: str, model: Path, data: Path, whole: Path, **changes: Any) -> Path:
    """The rest of a run that was stopped after its second update."""
    rest = whole.parent / f"{whole.name}-rest"
    shutil.copytree(whole / "checkpoint-2", rest / "checkpoint-2")
    keys = {**changes, "resume_from_checkpoint": str(rest / "checkpoint-2")}
    return run(stage, method, model, data, rest, **keys)


@pytest.mark.parametrize(("stage", "method"), [("sft", "lora"), ("pt", "full"), ("rm", "lora")])
def test_n40_a_run_with_shifted_attention_learns_resumes_and_is_used_like_any_other(
    stage: str, method: str, tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path
) -> None:
    paths = tiny_llama_dir, demo_dataset_dir
    whole = run(stage, method, *paths, tmp_path / "whole", shift_attn=True, save_steps=2)
    rest = resumed(stage, method, *paths, whole, shift_attn=True, save_steps=2)
    full = run(stage, method, *paths, tmp_path / "full")

    assert_same(saved_weights(whole), saved_weights(rest))
    assert_same(history(whole)[-1]["train_loss"], history(rest)[-1]["train_loss"])
    assert history(whole)[0]["loss"] != history(full)[0]["loss"]
    if stage == "sft":
        plain = load(tiny_llama_dir, adapter_name_or_path=str(whole))
        assert torch.isfinite(logits(plain)).all()
        assert plain.config._attn_implementation == "sdpa"


def test_n1_shifted_attention_does_not_mind_how_a_step_is_cut_into_batches(
    tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path
) -> None:
    found = {}
    for size, steps, padding_free in ((4, 1, None), (1, 4, None), (2, 2, False)):
        keys = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        out = tmp_path / f"{size}x{steps}"
        run(
            "sft",
            "full",
            tiny_llama_dir,
            demo_dataset_dir,
            out,
            shift_attn=True,
            max_steps=2,
            padding_free=padding_free,
            **keys,
        )
        found[out.name] = saved_weights(out)
    for name, weight in found["4x1"].items():
        for other in ("1x4", "2x2"):
            torch.testing.assert_close(found[other][name], weight, rtol=1e-4, atol=1e-6)
