"""Training on streamed rows, from a configuration to the weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_two_ranks import SCRIPTS, start
from torch.testing import assert_close

from llamafactory.extras.errors import UserError
from llamafactory.train.tuner import run_exp


@pytest.fixture
def keys(tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path, monkeypatch: Any) -> dict[str, Any]:
    monkeypatch.setenv("LLAMAFACTORY_CACHE", str(tmp_path / "cache"))
    return {
        "model_name_or_path": str(tiny_llama_dir),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "dataset": "tiny_alpaca,tiny_sharegpt",
        "dataset_dir": str(demo_dataset_dir),
        "template": "chatml",
        "cutoff_len": 128,
        "streaming": True,
        "output_dir": str(tmp_path / "out"),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "num_train_epochs": 2,
        "learning_rate": 0.01,
        "lora_dropout": 0.1,
        "save_steps": 1,
        "logging_steps": 1,
        "bf16": False,
        "disable_tqdm": True,
        "use_cpu": True,
    }


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def are_equal(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_streamed_run_equals_a_prepared_one(keys: dict[str, Any], tmp_path: Path) -> None:
    run_exp({**keys, "output_dir": str(tmp_path / "streamed"), "val_size": 4, "do_eval": True})
    run_exp({**keys, "output_dir": str(tmp_path / "prepared"), "val_size": 4, "do_eval": True, "streaming": False})

    assert are_equal(tmp_path / "streamed", tmp_path / "prepared")
    results = [json.loads((tmp_path / name / "all_results.json").read_text()) for name in ("streamed", "prepared")]
    assert results[0]["eval_loss"] == results[1]["eval_loss"]
    assert results[0]["epoch"] == results[1]["epoch"] == 2.0
    report = json.loads((tmp_path / "streamed" / "data_report.json").read_text())
    trained = [item for item in report["datasets"] if item["side"] == "train"]
    assert sum(item["num_kept"] for item in trained) == 28  # 32 rows less those held out, each counted once
    assert all(item["num_supervised"] > 0 for item in trained)


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        (3, {"dataloader_num_workers": 2}),
        (7, {"mix_strategy": "interleave_over"}),
        (4, {"packing": True, "max_steps": 7, "per_device_train_batch_size": 1}),
    ],
)
def test_n40_a_streamed_run_resumes_in_the_middle_of_an_epoch(
    keys: dict[str, Any], tmp_path: Path, step: int, changes: dict[str, Any]
) -> None:
    keys |= {"buffer_size": 6, "save_steps": step, **changes}
    again = tmp_path / "again"
    run_exp(keys)
    checkpoint = str(tmp_path / "out" / f"checkpoint-{step}")
    run_exp({**keys, "output_dir": str(again), "resume_from_checkpoint": checkpoint})

    steps = [json.loads((out / "trainer_state.json").read_text())["global_step"] for out in (tmp_path / "out", again)]
    assert steps[0] == steps[1] > step
    assert are_equal(tmp_path / "out", again)


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_preference_data_is_streamed_too(keys: dict[str, Any], tmp_path: Path, stage: str) -> None:
    rows: list[dict[str, Any]] = []
    for index in range(7):
        question = {"from": "human", "value": f"Row {index}?"}
        good, bad = ({"from": "gpt", "value": f"{word} {index}."} for word in ("Yes", "No"))
        pair = {"conversations": [question], "chosen": good, "rejected": bad}
        rows.append(pair if stage == "dpo" else {"conversations": [question, good], "kto_tag": index % 2 == 0})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    columns = {"messages": "conversations"}
    columns |= {"chosen": "chosen", "rejected": "rejected"} if stage == "dpo" else {"kto_tag": "kto_tag"}
    entry = {"file_name": str(tmp_path / "rows.json"), "formatting": "sharegpt", "columns": columns}
    info = {"rows": {**entry, "ranking": stage == "dpo"}}
    keys |= {"stage": stage, "dataset": "rows", "dataset_dir": info, "num_train_epochs": 1, "save_strategy": "no"}
    keys |= {"gradient_accumulation_steps": 1, "lora_dropout": 0.0}

    run_exp({**keys, "output_dir": str(tmp_path / "streamed")})
    run_exp({**keys, "output_dir": str(tmp_path / "prepared"), "streaming": False})

    assert are_equal(tmp_path / "streamed", tmp_path / "prepared")


def test_packing_without_an_end_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="streaming: true with packing needs max_steps"):
        run_exp({**keys, "packing": True})


@pytest.mark.slow
def test_n2_n24_two_ranks_train_on_the_rows_of_one(keys: dict[str, Any], tmp_path: Path) -> None:
    keys |= {"lora_dropout": 0.0, "optim": "sgd", "buffer_size": 10, "logging_strategy": "steps", "max_samples": 19}
    for num_ranks, batch, workers in ((1, 4, 0), (2, 2, 2)):
        config = {
            **keys,
            "output_dir": str(tmp_path / f"ranks{num_ranks}"),
            "per_device_train_batch_size": batch,
            "dataloader_num_workers": workers,
        }
        path = tmp_path / f"{num_ranks}.json"
        path.write_text(json.dumps(config))
        processes = start(SCRIPTS / "stream_ranks.py", num_ranks, str(path))
        assert [process.wait(timeout=300) for process in processes] == [0] * num_ranks

    one, two = (weights(tmp_path / name) for name in ("ranks1", "ranks2"))
    for name in one:
        assert_close(two[name], one[name], rtol=0, atol=1e-6)
    reports = [json.loads((tmp_path / name / "data_report.json").read_text()) for name in ("ranks1", "ranks2")]
    counted = [[(item["num_read"], item["num_tokens"]) for item in report["datasets"]] for report in reports]
    assert counted[0] == counted[1]
