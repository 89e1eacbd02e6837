"""Rows N4 and N8 for every stage with a dataset of its own: what is divided by what, computed again by hand."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_pairs import PAD, dpo_parts, kto_parts, make_marked, make_pairs, shift_weights
from tiny_trainer import losses, make_rows, parts_for, trained_weights, with_lora
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification

from llamafactory.data.collator import FlatCollator
from llamafactory.model.readout import enable_readout
from llamafactory.train.objective import Models
from llamafactory.train.rm.objective import count_pairs, pairwise_objective
from llamafactory.train.rm.scoring import PairCollator, ScoredCollator
from llamafactory.train.stage import StageParts


NUM_ROWS = 10  # 2 rows x 3 batches a step: 6 rows, then 4 rows in two batches


def scorer(make_model: Callable[..., Any]) -> Any:
    source = make_model()
    config = copy.deepcopy(source.config)
    config.num_labels = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModelForSequenceClassification.from_config(config)
    enable_readout(model)
    return model


def prepare(stage: str, make_model: Callable[..., Any]) -> tuple[Any, StageParts, Any]:
    """A model that has moved from its reference, the parts of a stage, and rows of very different lengths."""
    if stage == "sft":
        model = with_lora(make_model())
        return model, parts_for(model), make_rows(NUM_ROWS)
    if stage == "rm":
        pairs = PairCollator(ScoredCollator(FlatCollator(PAD)))
        model = scorer(make_model)
        parts = StageParts(collate=pairs, objective=pairwise_objective, weigh=count_pairs)
        return model, parts, make_pairs(NUM_ROWS)
    if stage == "kto":
        model = shift_weights(make_model())
        return model, kto_parts(model, make_model(), pref_ftx=0.3), make_marked(NUM_ROWS)
    model = shift_weights(with_lora(make_model()))
    return model, dpo_parts(model, pref_loss=stage, pref_ftx=0.2), make_pairs(NUM_ROWS)


def one_batch(parts: StageParts, model: Any, rows: Any, numbers: range) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum and weight of the rows of a whole step, in one batch."""
    models = Models(model, parts.helpers)
    batch = parts.collate([rows[number] for number in numbers])
    shared = parts.survey(models, [(batch, True)], is_training=True) if parts.survey else {}
    loss = parts.objective(models, {**batch, **shared})
    return loss.total, loss.weight


@pytest.mark.parametrize("stage", ["sft", "rm", "sigmoid", "orpo", "kto_pair", "kto"])
def test_n4_n8_updates_and_logs_are_means_over_the_rows_that_were_there(
    make_model: Callable[..., Any], make_trainer: Any, stage: str
):
    model, parts, rows = prepare(stage, make_model)
    common: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
    }
    trainer = make_trainer(model, rows, parts=parts, learning_rate=0.02, **common)
    trainer.train()

    expected, by_hand, _ = prepare(stage, make_model)
    means = []
    for numbers in (range(6), range(6, NUM_ROWS)):
        total, weight = one_batch(by_hand, expected.train(), rows, numbers)
        means.append((total / weight).item())
        expected.zero_grad()
        (total / weight).backward()
        with torch.no_grad():
            for parameter in expected.parameters():
                if parameter.grad is not None:
                    parameter -= 0.02 * parameter.grad
    start = trained_weights(prepare(stage, make_model)[0])
    assert (trained_weights(model) - start).abs().max() > 1e-4
    assert_close(trained_weights(model), trained_weights(expected), rtol=0, atol=2e-6)
    assert losses(trainer) == pytest.approx(means, abs=1e-5)

    still, parts, _ = prepare(stage, make_model)
    result = make_trainer(still, rows, parts=parts, learning_rate=0.0, logging_steps=2, **common)
    metrics = result.train().metrics
    sums = [one_batch(parts, still, rows, numbers) for numbers in (range(6), range(6, NUM_ROWS))]
    window = sum(total.item() for total, _ in sums) / sum(weight.item() for _, weight in sums)
    assert losses(result) == pytest.approx([window], abs=1e-5)
    assert metrics["train_loss"] == pytest.approx(window, abs=1e-5)
