"""Predictions are on disk as they are made; a stopped run goes on behind them."""

import json
from pathlib import Path
from typing import Any

import pytest

from llamafactory.extras.constants import PREDICTIONS
from llamafactory.train.predictions import PARTIAL, PredictionStore, publish_predictions
from llamafactory.train.sft.predictor import AnswerPredictor
from llamafactory.train.tuner import run_exp


ROWS = [{"input_ids": [1] * length} for length in (2, 5, 3, 4)]


def predict_some(store: PredictionStore, rows: list[int], upto: int) -> list[dict[str, Any]]:
    records = [{"predict": f"answer {number}"} for number in rows[:upto]]
    store.add(range(len(records)), records)
    return records


def test_what_is_on_disk_is_not_predicted_again(tmp_path: Path):
    first = PredictionStore(tmp_path, "", "run", 0)
    rows = first.open(ROWS, list)
    assert rows == [1, 3, 2, 0]  # longest first: what does not fit in memory shows at once
    predict_some(first, rows, 2)
    file = tmp_path / f"{PARTIAL}_0.jsonl"
    file.write_text(file.read_text() + '{"dataset": "", "ru')  # killed in the middle of a line

    second = PredictionStore(tmp_path, "", "run", 0)
    left = second.open(ROWS, list)
    assert left == [2, 0]
    records = second.complete(predict_some(second, left, 2))
    assert [record["predict"] for record in records] == [f"answer {number}" for number in range(4)]
    publish_predictions(tmp_path, records)
    assert [path.name for path in tmp_path.iterdir()] == [PREDICTIONS]


@pytest.mark.parametrize(
    ("name", "run", "rows", "num_left"),
    [("", "run", ROWS, 0), ("", "other", ROWS, 4), ("b", "run", ROWS, 4), ("", "run", [{"input_ids": [9, 9]}], 1)],
)
def test_only_the_same_run_and_prompt_count(
    tmp_path: Path, name: str, run: str, rows: list[dict[str, Any]], num_left: int
):
    first = PredictionStore(tmp_path, "", "run", 0)
    predict_some(first, first.open(ROWS, list), 4)
    assert len(PredictionStore(tmp_path, name, run, 0).open(rows, list)) == num_left


def test_a_killed_prediction_goes_on(
    tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    keys = {
        "model_name_or_path": str(tiny_llama_dir),
        "do_predict": True,
        "predict_with_generate": True,
        "eval_dataset": "tiny_alpaca",
        "dataset_dir": str(demo_dataset_dir),
        "template": "chatml",
        "max_samples": 9,
        "max_new_tokens": 4,
        "do_sample": False,
        "per_device_eval_batch_size": 2,
        "disable_tqdm": True,
    }
    run_exp({**keys, "output_dir": str(tmp_path / "whole")})
    whole = (tmp_path / "whole" / PREDICTIONS).read_text()
    predict, calls = AnswerPredictor.predict, list[int]()

    def dies(self: AnswerPredictor, models: Any, batch: Any) -> Any:
        calls.append(len(batch["input_ids"]))
        if sum(calls) > 6:
            raise KeyboardInterrupt
        return predict(self, models, batch)

    with monkeypatch.context() as patch:
        patch.setattr(AnswerPredictor, "predict", dies)
        with pytest.raises(KeyboardInterrupt):
            run_exp({**keys, "output_dir": str(tmp_path / "out")})
    assert not (tmp_path / "out" / PREDICTIONS).exists()
    seen = list[int]()

    def counts(self: AnswerPredictor, models: Any, batch: Any) -> Any:
        seen.append(len(batch["input_ids"]))
        return predict(self, models, batch)

    with monkeypatch.context() as patch:
        patch.setattr(AnswerPredictor, "predict", counts)
        run_exp({**keys, "output_dir": str(tmp_path / "out"), "per_device_eval_batch_size": 3})
    assert sum(seen) == 3  # of 9; 6 were there
    assert (tmp_path / "out" / PREDICTIONS).read_text() == whole
    results = [json.loads((tmp_path / name / "predict_results.json").read_text()) for name in ("out", "whole")]
    assert results[0]["predict_rouge-1"] == results[1]["predict_rouge-1"]
    assert not list((tmp_path / "out").glob(f"{PARTIAL}*"))
