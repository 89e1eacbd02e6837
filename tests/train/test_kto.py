"""Preference tuning on marked answers: rows N1, N31 and N32 of the correctness list."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_pairs import expected_logps, kto_parts, make_marked, policy_and_reference, shift_weights
from tiny_trainer import losses, trained_weights
from torch.testing import assert_close

from llamafactory.train.kto.objective import DRIFT, NUM_MARKS
from llamafactory.train.objective import Models
from llamafactory.train.reference import keep_adapter


CUTS = [(8, 1), (4, 2), (2, 4), (1, 8)]


def gained(make_model: Callable[..., Any], method: str) -> tuple[Any, Any, Any]:
    """Return a policy that finds random answers likelier than its reference, that one, and its equal."""
    if method == "full":
        spoilt, equal = (shift_weights(make_model(), scale=0.1) for _ in range(2))
        return shift_weights(make_model(), seed=2, scale=0.005), spoilt, equal
    model, spoilt = (shift_weights(make_model(method), scale=0.4) for _ in range(2))
    keep_adapter(model)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight *= 0.2
    return model, None, spoilt


def log_ratios(model: Any, base: Any, rows: Any, prefix: str = "") -> torch.Tensor:
    found = []
    for index in range(len(rows)):
        ids, labels = rows[index][f"{prefix}input_ids"], rows[index][f"{prefix}labels"]
        found.append(expected_logps(model, ids, labels) - expected_logps(base, ids, labels).detach())
    return torch.stack(found)


@pytest.mark.parametrize("is_flat", [True, False])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_n32_the_loss_is_the_formula_with_the_drift_of_the_whole_step(
    make_model: Callable[..., Any], method: str, is_flat: bool
):
    rows = make_marked(7)
    model, reference, base = gained(make_model, method)
    weights = {"kto_chosen_weight": 1.2, "kto_rejected_weight": 0.7}
    parts = kto_parts(model, reference, is_flat=is_flat, pref_beta=0.3, pref_ftx=0.4, **weights)
    models = Models(model, parts.helpers)
    batches = [parts.collate([rows[index] for index in part]) for part in ([0, 1, 2], [3, 4], [5], [6])]

    shared = parts.survey(models, [(batch, True) for batch in batches], is_training=True)
    found = [parts.objective(models, {**batch, **shared}) for batch in batches]
    total = sum(loss.total for loss in found)
    total.backward()
    gradient = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.requires_grad])
    model.zero_grad()

    kl = log_ratios(model, base, rows, "kl_").mean().clamp(min=0).detach()
    ratios = log_ratios(model, base, rows)
    is_good = torch.tensor([rows[index]["kto_tags"] for index in range(7)])
    lengths = torch.tensor([sum(label != -100 for label in rows[index]["labels"]) for index in range(7)])
    means = torch.stack([expected_logps(model, row["input_ids"], row["labels"]) for row in rows.rows]) / lengths
    good = 1.2 * (1 - (0.3 * (ratios - kl)).sigmoid()) - 0.4 * means
    bad = 0.7 * (1 - (0.3 * (kl - ratios)).sigmoid())
    expected = torch.where(is_good, good, bad).sum()
    expected.backward()
    expected_gradient = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.requires_grad])

    assert kl > 0.01
    assert not shared[DRIFT].requires_grad
    assert_close(shared[DRIFT], kl, rtol=1e-5, atol=1e-5)
    assert_close(total, expected, rtol=1e-6, atol=1e-5)
    assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-5)
    assert sum(loss.weight for loss in found) == 7


def test_n32_a_negative_drift_counts_as_none_and_fillers_do_not_count(make_model: Callable[..., Any]):
    rows = make_marked(6)
    model, reference = policy_and_reference(make_model, "full")
    swapped = kto_parts(reference, model)  # what the policy gained, the reference has lost
    models = Models(reference, swapped.helpers)
    batches = [swapped.collate([rows[index]]) for index in range(6)]

    all_rows = swapped.survey(models, [(batch, True) for batch in batches], is_training=True)
    some = swapped.survey(models, [(batch, index < 2) for index, batch in enumerate(batches)], is_training=False)
    two = swapped.survey(models, [(batch, True) for batch in batches[:2]], is_training=False)

    ratios = log_ratios(reference, model, rows, "kl_")
    assert float(all_rows[DRIFT]) == pytest.approx(max(float(ratios.mean()), 0), abs=1e-5)
    assert_close(some[DRIFT], two[DRIFT])
    assert some[NUM_MARKS].tolist() == two[NUM_MARKS].tolist() == [1, 1]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_n1_batch_times_accumulation_leaves_losses_and_weights_alone(
    make_model: Callable[..., Any], make_trainer: Any, method: str
):
    curves, deltas, shown = [], [], []
    for batch, accumulation in CUTS:
        model, reference = policy_and_reference(make_model, method)
        before = trained_weights(model)
        trainer = make_trainer(
            model,
            make_marked(17),  # the last step is one row, and still has a mismatched answer
            parts=kto_parts(model, reference, pref_ftx=0.1, kto_chosen_weight=1.3),
            eval_rows=make_marked(5, seed=3),
            per_device_train_batch_size=batch,
            per_device_eval_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=2,
            optim="sgd",
            learning_rate=0.3,
        )
        trainer.train()
        shown.append(trainer.evaluate())
        curves.append(torch.tensor([losses(trainer), losses(trainer, "kl"), losses(trainer, "rewards/accuracies")]))
        deltas.append(trained_weights(model) - before)
    assert curves[0].shape == (3, 6)
    assert curves[0].isfinite().all()
    assert deltas[0].abs().max() > 1e-4
    for curve, delta, metrics in zip(curves[1:], deltas[1:], shown[1:], strict=True):
        assert_close(curve, curves[0], rtol=0, atol=2e-5)
        assert_close(delta, deltas[0], rtol=0, atol=1e-5)
        for name in ("eval_loss", "eval_kl", "eval_rewards/margins", "eval_rewards/chosen"):
            assert metrics[name] == pytest.approx(shown[0][name], abs=2e-5)


def test_metrics_are_means_over_good_and_over_bad_rows(make_model: Callable[..., Any], make_trainer: Any):
    rows = make_marked(8)
    model, reference = policy_and_reference(make_model, "full")
    base = make_model()
    trainer = make_trainer(
        model, rows, parts=kto_parts(model, reference, pref_beta=0.2), eval_rows=rows, per_device_eval_batch_size=3
    )

    metrics = trainer.evaluate()

    rewards = 0.2 * log_ratios(model, base, rows).detach()
    is_good = torch.tensor([rows[index]["kto_tags"] for index in range(8)])
    chosen, rejected = float(rewards[is_good].mean()), float(rewards[~is_good].mean())
    assert metrics["eval_rewards/chosen"] == pytest.approx(chosen, abs=1e-5)
    assert metrics["eval_rewards/rejected"] == pytest.approx(rejected, abs=1e-5)
    assert metrics["eval_rewards/margins"] == pytest.approx(chosen - rejected, abs=1e-5)
    known = {f"eval_{kind}/{side}" for kind in ("logps", "logits") for side in ("chosen", "rejected")}
    assert known | {"eval_kl", "eval_loss"} <= metrics.keys()
    assert not [name for name in metrics if not name.startswith("eval_") and name != "epoch"]


@pytest.mark.parametrize("mark", [True, False])
def test_metrics_of_a_side_without_rows_are_left_out(make_model: Callable[..., Any], make_trainer: Any, mark: bool):
    rows = make_marked(6)
    for row in rows.rows:
        row["kto_tags"] = mark
    model, reference = policy_and_reference(make_model, "full")
    trainer = make_trainer(model, rows, parts=kto_parts(model, reference), eval_rows=rows)
    trainer.train()

    side, other = ("chosen", "rejected") if mark else ("rejected", "chosen")
    for metrics, prefix in ((trainer.state.log_history[0], ""), (trainer.evaluate(), "eval_")):
        assert {f"{prefix}{kind}/{side}" for kind in ("rewards", "logps", "logits")} <= metrics.keys()
        assert not [name for name in metrics if name.endswith((f"/{other}", "/margins"))]
        assert all(math.isfinite(value) for value in metrics.values())
