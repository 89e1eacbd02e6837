"""Options that change how a model computes while it learns: trained, resumed bit for bit, and answered with."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from model_making import load, logits
from stage_runs import assert_same, history, saved_weights, stage_keys

from llamafactory.extras.errors import UserError
from llamafactory.train.tuner import export_model, run_exp


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


@pytest.mark.parametrize(("stage", "changes"), [("sft", {}), ("pt", {"disable_gradient_checkpointing": False})])
def test_n40_a_mixture_of_depths_is_made_trained_resumed_and_talked_to(
    stage: str, changes: dict[str, Any], tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path
) -> None:
    paths = tiny_llama_dir, demo_dataset_dir
    keys = {"mixture_of_depths": "convert", "save_steps": 2, "cutoff_len": 64, **changes}
    whole = run(stage, "full", *paths, tmp_path / "whole", **keys)
    rest = resumed(stage, "full", *paths, whole, **keys)

    assert_same(saved_weights(whole), saved_weights(rest))
    weights, early = saved_weights(whole), saved_weights(whole / "checkpoint-2")
    routers = [name for name in weights if ".depth." in name]
    assert len(routers) == 4
    assert all(not torch.equal(weights[name], early[name]) for name in routers)
    told = [entry["depth_loss"] for entry in history(whole) if "depth_loss" in entry]
    assert len(told) == 5
    assert told[-1] < told[0]

    found = load(whole)
    assert {name for name, _ in found.named_parameters() if ".depth." in name} == set(routers)
    on = run(stage, "lora", whole, demo_dataset_dir, tmp_path / "on", mixture_of_depths="load", cutoff_len=64)
    assert torch.isfinite(logits(load(whole, adapter_name_or_path=str(on)))).all()


def test_a_mixture_of_depths_chats_predicts_and_is_not_exported(
    tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path
) -> None:
    from llamafactory.chat import ChatModel

    keys = {"mixture_of_depths": "convert", "max_steps": 1, "save_steps": 2}
    made = run("sft", "full", tiny_llama_dir, demo_dataset_dir, tmp_path / "made", **keys)
    words = {"model_name_or_path": str(made), "template": "chatml", "max_new_tokens": 6, "do_sample": False}
    chat = ChatModel({**words, "infer_dtype": "float32"})
    try:
        (answer,) = chat.chat([{"role": "user", "content": "Count to three."}])
    finally:
        chat.close()
    assert answer.response_length > 0

    predicting = {"do_train": False, "do_predict": True, "eval_dataset": "tiny_alpaca", "predict_with_generate": True}
    more = {"max_samples": 2, "max_new_tokens": 4, "dataset": None, "lr_scheduler_type": "linear"}
    run("sft", "full", made, demo_dataset_dir, tmp_path / "said", **predicting, **more)
    lines = (tmp_path / "said" / "generated_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    with pytest.raises(UserError, match="cannot be exported"):
        export_model({"model_name_or_path": str(made), "export_dir": str(tmp_path / "plain"), "template": "chatml"})


@pytest.mark.parametrize("size", [1, 2])
def test_n1_a_mixture_of_depths_does_not_mind_how_a_step_is_cut_into_batches(
    size: int, tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path
) -> None:
    """But for its guesses, whose error is a mean over the tokens of a batch, like the balance of experts."""
    found = []
    for count in (4, size):
        keys = {"per_device_train_batch_size": count, "gradient_accumulation_steps": 4 // count, "max_grad_norm": 0.0}
        more = {"mixture_of_depths": "convert", "max_steps": 1, "optim": "sgd", "learning_rate": 0.5}
        out = tmp_path / f"{count}"
        run("sft", "full", tiny_llama_dir, demo_dataset_dir, out, **keys, **more)
        found.append(saved_weights(out))
    for name, weight in found[0].items():
        if ".guess_" not in name:
            torch.testing.assert_close(found[1][name], weight, rtol=1e-4, atol=1e-6)
