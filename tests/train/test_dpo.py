"""Preference tuning on pairs: rows N1, N8, N25, N26 and N30 of the correctness list."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_pairs import dpo_parts, expected_logps, make_pairs, policy_and_reference, shift_weights
from tiny_trainer import losses, trained_weights
from torch.testing import assert_close

from llamafactory.ops.preference import PREFERENCE_LOSSES
from llamafactory.train.objective import Models


CUTS = [(8, 1), (4, 2), (2, 4), (1, 8)]


def models_of(model: Any, reference: Any) -> Models:
    return Models(model, {} if reference is None else {"reference": reference})


def plain_sums(model: Any, rows: Any) -> torch.Tensor:
    return torch.stack(
        [
            expected_logps(model, row[f"{side}_input_ids"], row[f"{side}_labels"])
            for side in ("chosen", "rejected")
            for row in rows
        ]
    )


@pytest.mark.parametrize("is_flat", [True, False])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_n25_n30_the_loss_is_the_formula_on_sums_over_answers(
    make_model: Callable[..., Any], method: str, is_flat: bool
):
    rows = make_pairs(5)
    model, reference = policy_and_reference(make_model, method)
    base = make_model()
    parts = dpo_parts(model, reference, is_flat=is_flat, pref_beta=0.3, dpo_label_smoothing=0.1)

    loss = parts.objective(models_of(model, reference), parts.collate(rows))
    loss.total.backward()
    gradient = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.requires_grad])
    model.zero_grad()
    chosen, rejected = (plain_sums(model, rows) - plain_sums(base, rows).detach()).chunk(2)
    margin = 0.3 * (chosen - rejected)
    expected = -(0.9 * margin.sigmoid().log() + 0.1 * (-margin).sigmoid().log()).sum()
    expected.backward()

    assert loss.weight == 5
    assert_close(loss.total, expected, rtol=1e-6, atol=1e-5)
    expected_gradient = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.requires_grad])
    assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-5)
    means = {name: float(sums.total / sums.weight) for name, sums in loss.metrics.items()}
    assert means["rewards/margins"] == pytest.approx(float(margin.mean()), abs=1e-5)
    assert means["rewards/accuracies"] == pytest.approx(float((margin > 0).float().mean()))
    assert means["rewards/chosen"] == pytest.approx(float(0.3 * chosen.mean()), abs=1e-5)
    assert means["logps/rejected"] == pytest.approx(float(plain_sums(model, rows)[5:].mean()), abs=1e-4)


def test_logits_in_the_log_are_the_mean_over_answers_and_vocabulary(make_model: Callable[..., Any]):
    rows = make_pairs(3)
    model, reference = policy_and_reference(make_model, "full")
    parts = dpo_parts(model, reference)

    metrics = parts.objective(models_of(model, reference), parts.collate(rows)).metrics

    for side in ("chosen", "rejected"):
        kept = []
        for row in rows:
            labels = torch.tensor(row[f"{side}_labels"][1:])
            kept.append(model(input_ids=torch.tensor([row[f"{side}_input_ids"]])).logits[0, :-1][labels != -100])
        found = metrics[f"logits/{side}"]
        assert_close(found.total / found.weight, torch.cat(kept).mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_n26_the_first_loss_is_ln_2_and_dropout_is_off(make_model: Callable[..., Any], method: str):
    rows = make_pairs(4)
    model = make_model(method, 0.5) if method == "lora" else make_model()
    parts = dpo_parts(model, make_model() if method == "full" else None)
    models = Models(model.train(), parts.helpers)

    start = parts.objective(models, parts.collate(rows))
    shift_weights(model)
    again = [parts.objective(models, parts.collate(rows)).total for _ in range(2)]

    assert float(start.total / start.weight) == pytest.approx(math.log(2), abs=1e-6)
    assert abs(float(again[0]) - float(start.total)) > 1e-3
    assert_close(again[0], again[1], rtol=0, atol=0)


@pytest.mark.parametrize("name", PREFERENCE_LOSSES.names())
def test_flat_and_padded_batches_give_the_same_loss(make_model: Callable[..., Any], name: str):
    rows = make_pairs(4)
    model, _ = policy_and_reference(make_model, "lora")
    smoothing = {"dpo_label_smoothing": 0.01} if name == "exo_pair" else {}
    found = []
    for is_flat in (True, False):
        parts = dpo_parts(model, None, is_flat=is_flat, pref_loss=name, pref_ftx=0.2, ld_alpha=0.5, **smoothing)
        batch, models = parts.collate(rows), Models(model)
        shared = parts.survey(models, [(batch, True)], is_training=True) if parts.survey else {}
        found.append(parts.objective(models, {**batch, **shared}))
    assert_close(found[0].total, found[1].total, rtol=1e-6, atol=1e-5)
    assert found[0].metrics.keys() == found[1].metrics.keys()
    for metric in found[0].metrics:
        assert_close(found[0].metrics[metric].total, found[1].metrics[metric].total, rtol=1e-5, atol=1e-4)


VARIANTS: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "kto_pair": {"pref_loss": "kto_pair"},
    "bco mix": {"pref_bco_weight": 0.5, "pref_ftx": 0.1},
    "simpo, ld": {"pref_loss": "simpo", "ld_alpha": 0.3},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_n1_batch_times_accumulation_leaves_losses_and_weights_alone(
    make_model: Callable[..., Any], make_trainer: Any, method: str, variant: str
):
    curves, deltas, shown = [], [], []
    for batch, accumulation in CUTS:
        model, reference = policy_and_reference(make_model, method)
        before = trained_weights(model)
        trainer = make_trainer(
            model,
            make_pairs(20),  # the last step is smaller
            parts=dpo_parts(model, reference, **VARIANTS[variant]),
            eval_rows=make_pairs(5, seed=3),
            per_device_train_batch_size=batch,
            per_device_eval_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=2,
            optim="sgd",
            learning_rate=0.03,
        )
        trainer.train()
        shown.append(trainer.evaluate())
        curves.append(torch.tensor([losses(trainer), losses(trainer, "rewards/margins")]))
        deltas.append(trained_weights(model) - before)
    assert curves[0].shape == (2, 6)
    assert deltas[0].abs().max() > 1e-4
    for curve, delta, metrics in zip(curves[1:], deltas[1:], shown[1:], strict=True):
        assert_close(curve, curves[0], rtol=0, atol=2e-5)
        assert_close(delta, deltas[0], rtol=0, atol=1e-5)
        for name in ("eval_loss", "eval_rewards/accuracies", "eval_rewards/margins", "eval_logits/chosen"):
            assert metrics[name] == pytest.approx(shown[0][name], abs=2e-5)


def test_the_metrics_of_a_log_are_named_as_users_know_them(make_model: Callable[..., Any], make_trainer: Any):
    known = {f"{kind}/{side}" for kind in ("rewards", "logps", "logits") for side in ("chosen", "rejected")}
    known |= {"rewards/accuracies", "rewards/margins"}
    for name, more in (("sigmoid", set()), ("orpo", {"sft_loss", "odds_ratio_loss"})):
        model = make_model("lora")
        trainer = make_trainer(
            model, make_pairs(4), parts=dpo_parts(model, pref_loss=name), eval_rows=make_pairs(3, seed=1)
        )
        trainer.train()
        metrics = trainer.evaluate()
        assert known | more <= trainer.state.log_history[0].keys()
        assert {f"eval_{metric}" for metric in known | more | {"loss"}} <= metrics.keys()


def test_the_baseline_of_bco_is_the_mean_reward_of_earlier_steps(make_model: Callable[..., Any], make_trainer: Any):
    model, _ = policy_and_reference(make_model, "lora")
    parts = dpo_parts(model, pref_loss="bco_pair")
    trainer = make_trainer(
        model, make_pairs(12), parts=parts, learning_rate=0.0, train_sampling_strategy="sequential", logging_steps=1
    )
    trainer.train()

    (baseline,) = parts.callbacks
    logged = torch.tensor([losses(trainer, "rewards/chosen"), losses(trainer, "rewards/rejected")])
    assert float(baseline.mean(torch.zeros(()))) == pytest.approx(float(logged.mean()), abs=1e-6)
    saved = baseline.state()["attributes"]["total"]
    assert saved[1] == 24
