"""A stage that the package does not know is one more row: helper models, rollouts, metrics and predictions."""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_trainer import losses, make_rows, pad_right, parts_for, trained_weights
from torch import nn
from torch.testing import assert_close

from llamafactory.extras.errors import UserError
from llamafactory.hparams.parser import get_train_args
from llamafactory.train.collation import row_collator
from llamafactory.train.objective import Batch, LossSum, MetricSum, Models, RolloutPlan
from llamafactory.train.sft.workflow import STAGE
from llamafactory.train.stage import STAGES, RunArguments, Stage, StageContext
from llamafactory.train.workflow import run_stage


def distance_to_reference(models: Models, batch: Batch) -> LossSum:
    """Rows, not tokens, are what this loss sums over."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        wanted = models.helpers["reference"](**inputs).logits[:, 0]
    distance = (models.policy(**inputs).logits[:, 0] + 1 - wanted).square().sum(-1)
    rows = torch.tensor(len(distance))
    return LossSum(distance.sum(), rows, {"rows": MetricSum(distance.detach().sum(), rows)})


def count_rows(batch: Batch) -> torch.Tensor:
    return torch.tensor(len(batch["input_ids"]))


@dataclass
class Doubling:
    """A rollout that puts every row in twice."""

    steps: list[int] = field(default_factory=list)
    plan: RolloutPlan = field(default_factory=lambda: RolloutPlan(num_prompts=4))

    def __call__(self, models: Models, rows: list[dict[str, Any]], step: int) -> list[Batch]:
        self.steps.append(step)
        return [pad_right([*rows, *rows])]

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


class LastTokens:
    """A predictor without generation."""

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        return {**pad_right(rows), "ids": [list(row["input_ids"]) for row in rows]}

    def predict(self, models: Models, batch: Batch) -> list[dict[str, Any]]:
        return [{"last": ids[-1]} for ids in batch["ids"]]

    def measure(self, records: list[dict[str, Any]]) -> dict[str, float]:
        return {"count": float(len(records))}


def helper_of(context: StageContext) -> Mapping[str, nn.Module]:
    return {"reference": copy.deepcopy(context.model)}


DISTANCE = Stage(
    name="distance",
    title="distance",
    dataset="sft",
    collator=row_collator,
    objective=lambda context: distance_to_reference,
    weigh=count_rows,
    helpers=helper_of,
    predictor=lambda context: LastTokens(),
    derive=lambda metrics: {"root": metrics["loss"] ** 0.5},
    plots=("loss", "rows"),
    joins_rows=False,
)


def test_a_foreign_stage_is_invariant_to_the_cut_of_a_step_too(make_model: Callable[..., Any], make_trainer: Any):
    results = []
    for batch, accumulation in ((8, 1), (2, 4), (1, 8)):
        model = make_model()
        parts = parts_for(
            model,
            objective=distance_to_reference,
            weigh=count_rows,
            helpers={"reference": make_model()},
            derive=DISTANCE.derive,
        )
        trainer = make_trainer(
            model,
            make_rows(12),
            eval_rows=make_rows(3),
            parts=parts,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=1e-3,
        )
        trainer.train()
        metrics = trainer.evaluate()
        assert metrics["eval_root"] == pytest.approx(metrics["eval_loss"] ** 0.5)
        assert losses(trainer) == losses(trainer, "rows")
        results.append((torch.tensor(losses(trainer)), trained_weights(model)))
        assert not any(weight.requires_grad for weight in trainer.helpers["reference"].parameters())
    for curve, weights in results[1:]:
        assert_close(curve, results[0][0], rtol=1e-6, atol=1e-4)
        assert_close(weights, results[0][1], rtol=0, atol=1e-6)


def test_a_rollout_makes_the_batches_of_a_step(make_model: Callable[..., Any], make_trainer: Any):
    curves, rollout = [], Doubling()
    for chosen in (None, rollout):
        model = make_model()
        parts = parts_for(model, rollout=chosen)
        order = {"train_sampling_strategy": "sequential"}
        trainer = make_trainer(model, make_rows(12), parts=parts, optim="sgd", **order)
        trainer.train()
        curves.append(torch.tensor(losses(trainer)))
    assert rollout.steps == [0, 1, 2]
    assert_close(curves[0], curves[1], rtol=0, atol=1e-5)  # each token counts twice, above and below the line


def arguments(model: Path, data: Path, out: Path, **keys: Any) -> RunArguments:
    given = {
        "model_name_or_path": str(model),
        "dataset": "tiny_alpaca",
        "dataset_dir": str(data),
        "template": "chatml",
        "output_dir": str(out),
        "stage": "sft",
        "do_train": True,
        "max_steps": 2,
        "logging_steps": 1,
        "val_size": 4,
        "bf16": False,
        "plot_loss": True,
        "disable_tqdm": True,
        "overwrite_cache": True,
        **keys,
    }
    return RunArguments(*get_train_args(given))


def test_the_workflow_runs_a_foreign_row_untouched(tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path):
    run = arguments(
        tiny_llama_dir, demo_dataset_dir, tmp_path, do_eval=True, do_predict=True, predict_with_generate=True
    )
    run_stage(DISTANCE, run)
    assert (tmp_path / "training_rows.png").is_file()
    lines = [json.loads(line) for line in (tmp_path / "generated_predictions.jsonl").read_text().splitlines()]
    assert len(lines) >= 4
    assert all(list(line) == ["last"] for line in lines)
    assert json.loads((tmp_path / "predict_results.json").read_text())["predict_count"] == len(lines)


def test_a_stage_can_refuse_before_anything_is_loaded(tmp_path: Path):
    def refuse(arguments: RunArguments) -> None:
        raise UserError("not today")

    row = Stage(
        name="no",
        title="no",
        dataset="sft",
        check=refuse,
        collator=row_collator,
        objective=STAGE.objective,
        weigh=STAGE.weigh,
    )
    with pytest.raises(UserError, match="not today"):
        run_stage(row, arguments(tmp_path / "no-model", tmp_path / "no-data", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_rows_are_looked_up_by_name():
    assert STAGES.get("sft") is STAGE
    with pytest.raises(UserError, match=r"Unknown stage 'sff'.*'sft'"):
        STAGES.get("sff")
