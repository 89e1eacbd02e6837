"""Token budgets in every stage that knows its rows: the steps that the report foretells are the steps of the run."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from llamafactory.train.tuner import run_exp


WORDS = ["one", "two", "three", "four", "five", "six", "seven"]
NUM_ROWS = 13


def write_data(folder: Path, stage: str) -> None:
    rows = [
        {
            "instruction": f"Count {index}.",
            "output": " ".join(WORDS[: 1 + index % 7]),
            "rejected": " ".join(WORDS[index % 5 :]),
            "good": index % 2 == 0,
        }
        for index in range(NUM_ROWS)
    ]
    columns = {"prompt": "instruction"}
    if stage in ("rm", "dpo"):
        columns |= {"chosen": "output", "rejected": "rejected"}
    elif stage == "kto":
        columns |= {"response": "output", "kto_tag": "good"}
    else:
        columns |= {"response": "output"}
    entry = {"file_name": "rows.json", "ranking": stage in ("rm", "dpo"), "columns": columns}
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "dataset_info.json").write_text(json.dumps({"rows": entry}))


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("sft", {}),
        ("sft", {"padding_free": False}),
        ("sft", {"packing": True, "cutoff_len": 64}),
        ("pt", {"cutoff_len": 16, "max_batch_tokens": 32}),
        ("dpo", {}),
        ("rm", {}),
        ("kto", {}),
    ],
)
def test_every_stage_trains_in_the_steps_that_the_report_foretells(
    tiny_llama_dir: Path, tmp_path: Path, stage: str, options: dict[str, Any]
):
    write_data(tmp_path, stage)
    out = tmp_path / "out"
    keys = {
        "model_name_or_path": str(tiny_llama_dir),
        "stage": stage,
        "do_train": True,
        "finetuning_type": "lora",
        "dataset": "rows",
        "dataset_dir": str(tmp_path),
        "template": "chatml",
        "cutoff_len": 128,
        "output_dir": str(out),
        "max_batch_tokens": 128,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    run_exp(keys | options)

    run = json.loads((out / "data_report.json").read_text())["run"]
    state = json.loads((out / "trainer_state.json").read_text())
    assert state["global_step"] == state["max_steps"] == run["num_steps"] == 2 * run["steps_per_epoch"]
    assert run["max_batch_tokens"] == options.get("max_batch_tokens", 128)
    assert 0 < run["batch_fill"] <= 1
    assert run["steps_per_epoch"] > 1
    assert (run["padding_share"] > 0) == (options.get("padding_free") is False)
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(losses) == state["global_step"]
    assert all(math.isfinite(loss) for loss in losses)
