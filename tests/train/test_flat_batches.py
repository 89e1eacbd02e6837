"""Batches without padding are the default where a model keeps documents apart, and change nothing but the speed."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import family_model
from tiny_trainer import losses, make_rows, pad_right, parts_for, trained_weights
from torch.testing import assert_close

from llamafactory.data.batch import documents_of, model_inputs
from llamafactory.data.collator import FlatCollator
from llamafactory.data.packing import PackedRows
from llamafactory.extras.errors import UserError
from llamafactory.hparams.parser import get_train_args
from llamafactory.model.model_utils.attention import attention_in_use, use_flat_attention
from llamafactory.train.collation import choose_layout, row_collator, settle_helpers
from llamafactory.train.layout import Layout
from llamafactory.train.stage import RunArguments
from llamafactory.train.tuner import run_exp


WHOLE = SimpleNamespace(fsdp=None, deepspeed=None, device="cpu", bf16=False, fp16=False)


def arguments(folder: Path, **changes: Any) -> RunArguments:
    keys = {
        "model_name_or_path": "nothing",
        "dataset": "tiny_alpaca",
        "finetuning_type": "lora",
        "template": "chatml",
        "do_train": True,
        "use_cpu": True,
        "bf16": False,
        "output_dir": str(folder / "out"),
    }
    return RunArguments(*get_train_args({**keys, **changes}))


def layout_of(model: Any, folder: Path, *, kind: str = "sft", joins_rows: bool = True, **changes: Any) -> Layout:
    return choose_layout(model, arguments(folder, **changes), WHOLE, kind=kind, joins_rows=joins_rows)


def test_unset_means_flat_where_documents_stay_apart(tmp_path: Path):
    model = family_model("llama", None)

    assert layout_of(model, tmp_path) == Layout("flat", with_bounds=True)
    assert attention_in_use(model) == "llamafactory"
    assert layout_of(family_model("llama", None), tmp_path, padding_free=False) == Layout()
    assert layout_of(family_model("llama", None), tmp_path, joins_rows=False) == Layout()
    assert layout_of(family_model("llama", None), tmp_path, packing=True).kind == "flat"


def test_a_kernel_without_bounds_pads_unless_told_otherwise(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")

    def choose(**changes: Any) -> Layout:
        return layout_of(family_model("llama", "sdpa"), tmp_path, flash_attn="sdpa", **changes)

    assert choose() == Layout()
    assert "Batches are padded: the attention sdpa would mask" in caplog.text
    assert choose(padding_free=True) == Layout("flat")
    assert choose(packing=True) == Layout("packed")


@pytest.mark.parametrize(
    ("family", "reason"),
    [("mamba", "no position_ids"), ("lfm2", "changes the next one"), ("qwen3_next", "changes the next one")],
)
def test_n10_a_model_that_leaks_is_padded_and_one_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, family: str, reason: str
):
    caplog.set_level("INFO")
    assert layout_of(family_model(family, None), tmp_path) == Layout()
    said = [record.getMessage() for record in caplog.records if "Batches are padded" in record.getMessage()]
    assert len(said) == 1
    assert reason in said[0]


@pytest.mark.parametrize("key", ["padding_free", "packing"])
def test_n10_what_was_asked_for_and_would_leak_is_refused(tmp_path: Path, key: str):
    with pytest.raises(UserError, match=r"cannot keep the documents .*; set packing: false and padding_free: false"):
        layout_of(family_model("lfm2", None), tmp_path, **{key: True})


def test_a_stage_that_pads_refuses_padding_free(tmp_path: Path):
    with pytest.raises(UserError, match="padding_free: true is not known"):
        layout_of(family_model("llama", None), tmp_path, padding_free=True, joins_rows=False)


def test_a_sharded_model_is_asked_later(tmp_path: Path):
    sharded = SimpleNamespace(**{**vars(WHOLE), "fsdp": True})
    layout = choose_layout(family_model("llama", None), arguments(tmp_path), sharded, kind="sft")
    assert layout == Layout("flat", with_bounds=True, is_asked=False)


def test_helpers_read_the_same_batches_or_are_refused(tmp_path: Path):
    run = arguments(tmp_path)
    helper = family_model("qwen2", None)
    settle_helpers({"reference": helper}, Layout("flat", with_bounds=True), run, WHOLE)
    assert attention_in_use(helper) == "llamafactory"
    with pytest.raises(UserError, match="The reference model does not fit this run: Lfm2ForCausalLM cannot keep"):
        settle_helpers({"reference": family_model("lfm2", None)}, Layout("flat"), run, WHOLE)


def test_a_flat_batch_says_where_its_documents_are(tiny_tokenizer: Any):
    rows = make_rows(3)
    lengths = [len(row["input_ids"]) for row in rows]
    batch = FlatCollator(tiny_tokenizer, 64)(rows)
    padding = batch["input_ids"].shape[1] - sum(lengths)
    bounds = torch.tensor([0, *lengths, padding]).cumsum(0)

    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == bounds.tolist()
    assert batch["max_length_q"] == batch["max_length_k"] == max(*lengths, padding)
    assert isinstance(batch["max_length_q"], int)
    numbers = torch.arange(4).repeat_interleave(bounds.diff())
    assert documents_of(batch).tolist() == [numbers.tolist()]
    assert set(batch) - set(model_inputs(batch)) == {"labels", "attention_mask"}
    assert "max_length_q" not in FlatCollator(tiny_tokenizer, with_bounds=False)(rows)


def test_n11_no_document_is_asked_for_the_first_token_of_the_next(tiny_tokenizer: Any):
    rows = [{**row, "labels": list(row["input_ids"])} for row in make_rows(5)]
    batch = FlatCollator(tiny_tokenizer)(rows)

    starts = batch["cu_seq_lens_q"][:-1]
    assert batch["labels"][0, starts].tolist() == [-100] * 5
    assert int((batch["labels"] == -100).sum()) == 5


@pytest.mark.parametrize("data", ["rows", "packed"])
def test_n1_flat_steps_do_not_depend_on_how_they_are_cut(tiny_tokenizer: Any, make_trainer: Any, data: str):
    rows = make_rows(16)
    results = []
    for batch, accumulation in ((8, 1), (4, 2), (2, 4), (1, 8)):
        model = family_model("llama", None)
        use_flat_attention(model, "auto")
        parts = parts_for(model, collate=FlatCollator(tiny_tokenizer))
        dataset = rows if data == "rows" else PackedRows(rows, 64)
        trainer = make_trainer(
            model,
            dataset,
            parts=parts,
            eval_rows=rows,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
        )
        trainer.train()
        results.append((losses(trainer), trained_weights(model), trainer.evaluate()["eval_loss"]))

    for loss, weights, eval_loss in results[1:]:
        assert loss == pytest.approx(results[0][0], abs=1e-5)
        assert_close(weights, results[0][1], rtol=0, atol=1e-5)
        assert eval_loss == pytest.approx(results[0][2], abs=1e-5)


def test_n9_a_flat_run_learns_what_a_padded_one_learns(tiny_tokenizer: Any, make_trainer: Any):
    rows = make_rows(16)
    results = []
    for kind in ("flat", "padded"):
        model = family_model("llama", None)
        if kind == "flat":
            use_flat_attention(model, "auto")
        parts = parts_for(model, collate=FlatCollator(tiny_tokenizer) if kind == "flat" else pad_right)
        trainer = make_trainer(model, rows, parts=parts, eval_rows=rows, optim="sgd", dataloader_num_workers=1)
        trainer.train()
        results.append(
            (losses(trainer), trained_weights(model), trainer.evaluate()["eval_loss"], trainer.meter.num_tokens)
        )

    (loss, weights, eval_loss, tokens), padded = results
    assert loss == pytest.approx(padded[0], abs=1e-5)
    assert_close(weights, padded[1], rtol=0, atol=1e-5)
    assert eval_loss == pytest.approx(padded[2], abs=1e-5)
    assert tokens == padded[3] == sum(len(row["input_ids"]) for row in rows)


def run_keys(model: Path, data: Path, out: Path) -> dict[str, Any]:
    return {
        "model_name_or_path": str(model),
        "dataset_dir": str(data),
        "output_dir": str(out),
        "finetuning_type": "lora",
        "template": "chatml",
        "cutoff_len": 128,
        "seed": 1,
        "use_cpu": True,
        "bf16": False,
    }


def test_a_run_with_defaults_equals_a_padded_one(tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path):
    found = []
    for name, changes in (("auto", {}), ("padded", {"padding_free": False, "flash_attn": "sdpa"})):
        keys = run_keys(tiny_llama_dir, demo_dataset_dir, tmp_path / name)
        run_exp(
            {**keys, **changes, "dataset": "tiny_alpaca", "do_train": True, "val_size": 4, "eval_strategy": "epoch"}
        )
        results = json.loads((tmp_path / name / "all_results.json").read_text())
        found.append((results["train_loss"], results["eval_loss"]))

    assert found[0] == pytest.approx(found[1], abs=1e-5)


@pytest.mark.parametrize("trains", [False, True], ids=["eval only", "after training"])
def test_predictions_and_eval_losses_are_those_of_sdpa(
    tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path, trains: bool
):
    pytest.importorskip("rouge_score")
    pytest.importorskip("sacrebleu")
    texts = []
    for kernel in ("auto", "sdpa"):
        keys = run_keys(tiny_llama_dir, demo_dataset_dir, tmp_path / kernel)
        keys |= {"eval_dataset": "tiny_sharegpt", "do_predict": True, "predict_with_generate": True}
        keys |= {"max_new_tokens": 12, "per_device_eval_batch_size": 3, "flash_attn": kernel}
        keys |= {"do_train": True, "dataset": "tiny_alpaca", "max_steps": 2} if trains else {}
        run_exp(keys)
        texts.append((tmp_path / kernel / "generated_predictions.jsonl").read_text())

    assert texts[0] == texts[1]


def test_the_collator_of_a_run_follows_its_layout(tiny_tokenizer: Any):
    def names(layout: Layout) -> set[str]:
        context: Any = SimpleNamespace(tokenizer=tiny_tokenizer, layout=layout)
        return set(row_collator(context)(make_rows(2)))

    assert names(Layout()) == {"input_ids", "attention_mask", "labels"}
    assert names(Layout("packed")) == names(Layout()) | {"position_ids"} == names(Layout("flat"))
    assert "cu_seq_lens_q" in names(Layout("flat", with_bounds=True))
