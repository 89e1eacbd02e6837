"""One division per optimizer step: rows N1, N3, N4 and N8 of the correctness list."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_trainer import losses, make_rows, pad_right, parts_for, trained_weights
from torch import Tensor, nn
from torch.testing import assert_close


CUTS = [(8, 1), (4, 2), (2, 4), (1, 8)]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_n1_batch_times_accumulation_leaves_losses_and_weights_alone(
    make_model: Callable[..., Any], make_trainer: Any, method: str
):
    curves, deltas = [], []
    for batch, accumulation in CUTS:
        model = make_model(method)
        before = trained_weights(model)
        trainer = make_trainer(
            model,
            make_rows(24),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=2,
            optim="sgd",  # an update in proportion to the gradient: Adam would hide a wrong scale
            learning_rate=0.1,
        )
        trainer.train()
        curves.append(torch.tensor(losses(trainer)))
        deltas.append(trained_weights(model) - before)
    print(
        "\n".join(
            f"{cut}: {[round(value, 6) for value in curve.tolist()]}" for cut, curve in zip(CUTS, curves, strict=True)
        )
    )
    assert curves[0].numel() == 6
    assert deltas[0].abs().max() > 1e-3
    for curve, delta in zip(curves[1:], deltas[1:], strict=True):
        assert_close(curve, curves[0], rtol=0, atol=1e-5)
        assert_close(delta, deltas[0], rtol=0, atol=1e-5)


class Bare(nn.Module):
    """A model that takes ids and mask, and no other argument."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.config = inner.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.inner(input_ids=input_ids, attention_mask=attention_mask)


def test_n3_models_without_loss_arguments_are_treated_alike(make_model: Callable[..., Any], make_trainer: Any):
    results = []
    for batch, accumulation, wrap in [(8, 1, Bare), (2, 4, Bare), (8, 1, lambda model: model)]:
        model = wrap(make_model())
        trainer = make_trainer(
            model,
            make_rows(16),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=0.1,
        )
        trainer.train()
        results.append((torch.tensor(losses(trainer)), trained_weights(model)))
    for curve, weights in results[1:]:
        assert_close(curve, results[0][0], rtol=0, atol=1e-5)
        assert_close(weights, results[0][1], rtol=0, atol=1e-5)


def test_n4_last_incomplete_window_is_divided_by_its_own_tokens(make_model: Callable[..., Any], make_trainer: Any):
    rows = make_rows(10)  # 2 x 3 per step: 6 rows, then 4 rows in two micro-batches
    model = make_model()
    trainer = make_trainer(
        model,
        rows,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
    )
    trainer.train()

    expected = make_model()
    for step_rows in (rows[:6], rows[6:]):
        batch = pad_right(step_rows)
        logits = expected(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        mean = nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())
        expected.zero_grad()
        mean.backward()
        with torch.no_grad():
            for weight in expected.parameters():
                weight -= 0.1 * weight.grad
    assert_close(trained_weights(model), trained_weights(expected), rtol=0, atol=1e-6)


def token_mean(model: Any, rows: list[Any]) -> float:
    with torch.no_grad():
        batch = pad_right(rows)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten()).item()


def test_n8_logged_loss_is_the_mean_per_token_of_its_window(make_model: Callable[..., Any], make_trainer: Any):
    rows = make_rows(20)
    trainer = make_trainer(
        make_model(),
        rows,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=0.0,  # the model stays, so every window can be computed again
        logging_steps=2,
        train_sampling_strategy="sequential",
    )
    result = trainer.train()
    model = make_model()
    expected = [token_mean(model, rows[start : start + 8]) for start in (0, 8)]
    assert_close(losses(trainer), expected, rtol=0, atol=1e-5)
    assert result.metrics["train_loss"] == pytest.approx(token_mean(model, rows), abs=1e-5)


def test_n8_eval_loss_is_the_mean_per_token_of_the_set_at_any_batch_size(
    make_model: Callable[..., Any], make_trainer: Any
):
    rows = make_rows(13)
    expected = token_mean(make_model(), rows)
    mean_of_means = sum(token_mean(make_model(), rows[start : start + 4]) for start in range(0, 13, 4)) / 4
    assert abs(expected - mean_of_means) > 1e-4
    for batch in (1, 4, 13, 64):
        trainer = make_trainer(make_model(), rows, eval_rows=rows, per_device_eval_batch_size=batch)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-5)


def test_metrics_are_ratios_of_sums(make_model: Callable[..., Any], make_trainer: Any):
    from llamafactory.train.sft.objective import objective_for

    rows = make_rows(9)
    accuracies = []
    for batch in (2, 9):
        model = make_model()
        parts = parts_for(model, objective=objective_for(model, with_accuracy=True))
        trainer = make_trainer(model, rows, eval_rows=rows, parts=parts, per_device_eval_batch_size=batch)
        accuracies.append(trainer.evaluate()["eval_accuracy"])
    batch = pad_right(rows)
    logits = make_model()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    is_counted = batch["labels"][:, 1:] != -100
    expected = (logits.argmax(-1) == batch["labels"][:, 1:])[is_counted].float().mean().item()
    assert accuracies == pytest.approx([expected, expected], abs=1e-6)


def test_a_step_without_supervised_tokens_changes_nothing(make_model: Callable[..., Any], make_trainer: Any):
    rows = [{**row, "labels": [-100] * len(row["labels"])} for row in make_rows(4)]
    model = make_model()
    before = trained_weights(model)
    make_trainer(model, rows, optim="sgd").train()
    assert_close(trained_weights(model), before, rtol=0, atol=0)


def test_several_evaluation_sets_are_measured_apart(make_model: Callable[..., Any], make_trainer: Any):
    sets = {"short": make_rows(3, seed=1), "long": make_rows(5, seed=2)}
    metrics = make_trainer(make_model(), make_rows(4), eval_rows=sets).evaluate()
    for name, rows in sets.items():
        assert metrics[f"eval_{name}_loss"] == pytest.approx(token_mean(make_model(), rows), abs=1e-5)


def test_label_smoothing_is_used_in_training_only(make_model: Callable[..., Any], make_trainer: Any):
    from llamafactory.train.sft.objective import objective_for

    rows = make_rows(4)
    curves = {}
    for smoothing in (0.0, 0.2):
        model = make_model()
        parts = parts_for(model, objective=objective_for(model, label_smoothing=smoothing))
        trainer = make_trainer(model, rows, eval_rows=rows, parts=parts)
        curves[smoothing] = (trainer.evaluate()["eval_loss"], trainer.train().metrics["train_loss"])
    assert curves[0.0][0] == pytest.approx(curves[0.2][0], abs=1e-7)
    assert abs(curves[0.0][1] - curves[0.2][1]) > 1e-3


def test_the_rows_of_these_tests_weigh_very_differently():
    counts = [sum(label != -100 for label in row["labels"]) for row in make_rows(24)]
    assert max(counts) > 10 * min(counts)
