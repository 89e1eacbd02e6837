"""Options that change how a model computes while it learns: trained, resumed bit for bit, and answered with."""

import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from families import family_model
from model_making import load, logits
from stage_runs import assert_same, history, saved_weights, stage_keys

from llamafactory.extras.errors import UserError
from llamafactory.extras.packages import is_available
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


def test_every_kernel_of_flash_attn_learns_the_same(
    tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    found: dict[str, list[float]] = {}
    for kernel in ("auto", "disabled", "sdpa", "fa2", "fa3"):
        out = run("sft", "full", tiny_llama_dir, demo_dataset_dir, tmp_path / kernel, flash_attn=kernel, max_steps=2)
        found[kernel] = [entry["loss"] for entry in history(out) if "loss" in entry]
    for kernel, package in (("fa2", "flash_attn"), ("fa3", "flash_attn_interface")):
        if not is_available(package):
            assert f"flash_attn {kernel} needs the package {package}; the model's own kernel is used." in said.text
        assert found[kernel] == pytest.approx(found["auto"], rel=1e-4)
    assert found["disabled"] == pytest.approx(found["auto"], rel=1e-4)
    assert found["sdpa"] == pytest.approx(found["auto"], rel=1e-4)


def test_options_that_only_widen_or_tell_leave_the_loss_as_it_is(
    tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    paths = tiny_llama_dir, demo_dataset_dir
    plain = history(run("sft", "lora", *paths, tmp_path / "plain", max_steps=2))
    options = {"upcast_layernorm": True, "upcast_lmhead_output": True, "print_param_status": True}

    told = history(run("sft", "lora", *paths, tmp_path / "told", max_steps=2, **options))

    assert told == plain
    assert "model.layers.1.mlp.up_proj.lora_A.default.weight: torch.float32, cpu, trained: True" in said.text
    assert "model.embed_tokens.weight: torch.float32, cpu, trained: False" in said.text


@pytest.mark.parametrize("method", ["full", "lora"])
def test_n47_resize_vocab_alone_gives_every_token_of_a_larger_tokenizer_a_row(
    method: str, tiny_llama: Any, tiny_tokenizer_dir: Path, demo_dataset_dir: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    model = tiny_llama()
    model.save_pretrained(tmp_path / "m")
    tokenizer.add_tokens(["Sure:"])  # a word of the data
    tokenizer.save_pretrained(tmp_path / "m")
    paths = tmp_path / "m", demo_dataset_dir
    with pytest.raises(UserError, match="tokens but the model only"):
        run("sft", method, *paths, tmp_path / "refused", max_steps=1)

    out = run("sft", method, *paths, tmp_path / "a", resize_vocab=True, max_steps=2)

    where: dict[str, Any] = {"adapter_name_or_path": str(out)} if method == "lora" else {}
    grown = load(out if method == "full" else tmp_path / "m", **where)
    rows, size = grown.get_input_embeddings().weight, len(tokenizer)
    assert rows.shape[0] == -(-size // 64) * 64 == grown.config.vocab_size
    assert grown.get_output_embeddings().weight is rows
    if method == "lora":
        assert torch.equal(rows[: size - 1], model.model.embed_tokens.weight)
    assert torch.isfinite(logits(grown)).all()


def test_n7_n38_a_mixture_is_trained_with_its_balance_and_found_again(
    tiny_tokenizer: Any, demo_dataset_dir: Path, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    family_model("qwen3_moe", vocab_size=len(tiny_tokenizer)).save_pretrained(tmp_path / "m")
    tiny_tokenizer.save_pretrained(tmp_path / "m")
    keys = {
        "moe_aux_loss_coef": 0.1,
        "lora_dropout": 0.0,
        "lora_router": True,
        "disable_gradient_checkpointing": False,
    }

    out = run("sft", "lora", tmp_path / "m", demo_dataset_dir, tmp_path / "a", save_steps=2, **keys)
    rest = resumed("sft", "lora", tmp_path / "m", demo_dataset_dir, out, save_steps=2, **keys)

    assert "8 of 8 experts in 2 layers adapted; 2 of 2 routers" in said.text
    assert all(entry["aux_loss"] > 0.1 for entry in history(out) if "loss" in entry)  # even use gives 2 a token
    assert_same(saved_weights(out), saved_weights(rest))
    plain = logits(load(tmp_path / "m"))
    assert float((logits(load(tmp_path / "m", adapter_name_or_path=str(out))) - plain).abs().max()) > 1e-4


def test_llama_pro_s_script_makes_a_model_whose_new_blocks_alone_learn(
    tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path
) -> None:
    script = Path(__file__).resolve().parents[2] / "scripts" / "llama_pro.py"
    main = runpy.run_path(str(script))["main"]
    words = [f"model_name_or_path={tiny_llama_dir}", f"output_dir={tmp_path / 'pro'}", "num_expand=2"]
    assert main(words) == 0
    assert main(words) == 1  # the folder holds something
    assert main(["num_expand=2"]) == 2
    before = load(tmp_path / "pro").state_dict()

    keys = {"use_llama_pro": True, "freeze_trainable_layers": 2}
    out = run("sft", "freeze", tmp_path / "pro", demo_dataset_dir, tmp_path / "a", **keys)

    after = load(out).state_dict()
    moved = {
        name.split("layers.")[1][0] if "layers." in name else name for name in after if differs(name, before, after)
    }
    assert moved == {"1", "3"}


def differs(name: str, before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    return not torch.equal(before[name], after[name])
