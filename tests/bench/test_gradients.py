"""The task `gradients`: our LoRA gradients are those of transformers and PEFT, and a wrong one would be told."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llamafactory.bench import gradients, report
from llamafactory.bench.job import Job


def make_job(folder: Path, model: Path) -> Job:
    generator = torch.Generator().manual_seed(0)
    rows: list[dict[str, list[int]]] = []
    for length in (5, 9, 7, 12, 6, 4):
        ids = torch.randint(5, 200, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100, -100, *ids[2:]]})
    (folder / "ids.json").write_text(json.dumps(rows), encoding="utf-8")
    names: dict[str, Any] = {
        "model": str(model),
        "folder": str(folder),
        "ids": str(folder / "ids.json"),
        "dataset": "rows",
    }
    return Job(run="", stage="sft", method="lora", batch=2, steps=3, **names)


def test_our_gradients_are_the_reference_s(tmp_path: Path, tiny_llama_dir: Path) -> None:
    result = gradients.measure(make_job(tmp_path, tiny_llama_dir))

    assert len(result["fp32_ours"]) == 3
    assert 0 < max(result["fp32_ours"]) < 1e-5
    assert result["checks"][0]["is_equal"]
    assert "LoRA gradients in float32" in report.describe_check(result["checks"][0])


def test_a_gradient_of_other_tokens_is_far_away(tmp_path: Path, tiny_llama_dir: Path) -> None:
    job = make_job(tmp_path, tiny_llama_dir)
    rows = json.loads(Path(job.ids).read_text(encoding="utf-8"))
    get, get_ours = gradients.reference_gradients(job, bf16=False), gradients.ours_gradients(job, bf16=False)

    assert gradients.distance(get_ours(rows[:2]), get(rows[:2])) < 1e-5
    assert gradients.distance(get_ours(rows[:2]), get(rows[2:4])) > 0.1


@pytest.mark.parametrize(("shift", "is_equal"), [(0.0, True), (0.01, False), (-0.01, True)])
def test_a_side_that_is_farther_away_than_chance_is_told(shift: float, is_equal: bool) -> None:
    theirs = [0.040, 0.042, 0.041, 0.039]
    noise = [0.001, -0.001, 0.0005, -0.0005]
    mine = [value + shift + extra for value, extra in zip(theirs, noise, strict=True)]

    check = list(gradients.checks({"fp32_ours": [2e-6], "bf16_ours": mine, "bf16_reference": theirs}))[1]

    assert check["is_equal"] is is_equal
    assert ("FARTHER" in report.describe_check(check)) is not is_equal
