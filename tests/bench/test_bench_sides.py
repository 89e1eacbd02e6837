"""Both sides of a training task do the same work: the same tokens, the same loss at every step."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llamafactory.bench import gemm, gpu, reference, reference_dpo, rows
from llamafactory.bench.job import Job
from llamafactory.bench.ours import train as train_ours
from llamafactory.bench.tasks import TASKS


def make_job(folder: Path, model: Path, **values: Any) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    defaults: dict[str, Any] = {
        "run": "",
        "model": str(model),
        "folder": str(folder),
        "stage": "sft",
        "method": "lora",
        "cutoff_len": 64,
        "batch": 2,
        "accumulation": 2,
        "steps": 2,
        "warmup": 1,
    }
    return Job(**{**defaults, **values})


def prepared(folder: Path, model: Path, *, is_packed: bool, **values: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the preparation said, and what a job of its sides is told."""
    settings = {"source": "", "is_packed": is_packed}
    work = rows.prepare(make_job(folder, model, settings=settings, **values))
    (folder / "work.json").write_text(json.dumps(work), encoding="utf-8")
    return work, {"ids": work["ids"], "dataset": rows.DATASET, "dataset_dir": str(folder)}


@pytest.mark.parametrize("is_packed", [False, True])
def test_both_sides_learn_the_same_tokens_with_the_same_loss(
    tmp_path: Path, tiny_llama_dir: Path, is_packed: bool
) -> None:
    work, shared = prepared(tmp_path / "rows", tiny_llama_dir, is_packed=is_packed)
    packing = {"packing": True} if is_packed else {}

    theirs = reference.train(
        make_job(tmp_path / "reference", tiny_llama_dir, settings={"gradient_checkpointing": not is_packed}, **shared)
    )
    ours = train_ours(
        make_job(
            tmp_path / "ours", tiny_llama_dir, settings={"finetuning_type": "lora", "lora_rank": 8} | packing, **shared
        )
    )

    assert ours["tokens_seen"] == theirs["tokens_seen"] == sum(work["tokens"])
    assert ours["tokens"] == theirs["tokens"] == work["tokens"][1]
    assert ours["supervised_tokens"] == theirs["supervised_tokens"] == work["supervised"][1]
    assert len(ours["losses"]) == 2
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=0.01)
    assert ours["grad_norms"] == pytest.approx(theirs["grad_norms"], rel=0.1)
    assert 0 <= ours["trainer_share"] < 1
    assert (tmp_path / "ours" / "progress").read_text() == ".."


def test_the_dpo_reference_starts_at_log_two(tmp_path: Path, tiny_llama_dir: Path) -> None:
    pair = {
        "chosen_input_ids": [5, 6, 7, 8],
        "chosen_labels": [-100, -100, 7, 8],
        "rejected_input_ids": [5, 6, 9],
        "rejected_labels": [-100, -100, 9],
    }
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps([pair] * 4), encoding="utf-8")
    job = make_job(tmp_path / "job", tiny_llama_dir, stage="dpo", accumulation=1, ids=str(ids))

    result = reference_dpo.train(job)

    assert result["losses"][0] == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-4)
    assert result["losses"][1] < result["losses"][0]
    assert result["tokens"] == 14


def test_the_bound_counts_every_linear_layer(tmp_path: Path, tiny_llama_dir: Path, tiny_llama: Any) -> None:
    job = make_job(tmp_path / "gemm", tiny_llama_dir)

    result = gemm.measure(job)

    linear = [module for module in tiny_llama().modules() if isinstance(module, torch.nn.Linear)]
    assert result["parameters"] == sum(module.weight.numel() for module in linear)
    assert result["tokens_per_s"] > 0


def test_the_gpu_tasks_train_a_made_up_model_of_a_known_shape(tmp_path: Path) -> None:
    """The shapes are for a GPU; here they are made small, so that all but the speed is tried."""
    task = next(each for each in TASKS if each.name == "gpu-8b-lora")
    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 600,
    }
    settings = {**task.sides[0].settings, "changes": small, "accumulation": 1, "cutoff_len": 48}

    result = gpu.train(make_job(tmp_path / "gpu", Path("unused"), settings=settings))

    assert result["tokens"] == 2 * 48
    assert result["tokens_seen"] == 2 * result["tokens"]
    assert len(result["losses"]) == 2


def test_both_sides_of_dpo_show_the_same_losses(tmp_path: Path, tiny_llama_dir: Path) -> None:
    task = next(each for each in TASKS if each.name == "dpo")
    work, shared = prepared(tmp_path / "rows", tiny_llama_dir, is_packed=False, stage="dpo", accumulation=1)
    values = {"stage": "dpo", "accumulation": 1, **shared}

    theirs = reference_dpo.train(make_job(tmp_path / "reference", tiny_llama_dir, **values))
    ours = train_ours(make_job(tmp_path / "ours", tiny_llama_dir, settings=dict(task.sides[1].settings), **values))

    assert theirs["tokens_seen"] == sum(work["tokens"])
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=2e-3)
    assert ours["grad_norms"] == pytest.approx(theirs["grad_norms"], rel=0.1)


@pytest.mark.quantized
def test_both_sides_of_qlora_show_the_same_losses(tmp_path: Path, tiny_llama_dir: Path) -> None:
    task = next(each for each in TASKS if each.name == "sft-qlora")
    _, shared = prepared(tmp_path / "rows", tiny_llama_dir, is_packed=False)
    theirs, ours = (dict(side.settings) for side in task.sides)

    wanted = reference.train(make_job(tmp_path / "reference", tiny_llama_dir, settings=theirs, **shared))
    result = train_ours(make_job(tmp_path / "ours", tiny_llama_dir, settings=ours, **shared))

    assert result["losses"] == pytest.approx(wanted["losses"], abs=5e-3)
    assert result["grad_norms"] == pytest.approx(wanted["grad_norms"], rel=0.1)
