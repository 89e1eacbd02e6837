"""Messages whose loss counts more or less: the value of the loss and the update (N6, N1)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_trainer import losses, make_rows, parts_for, trained_weights
from torch.testing import assert_close

from llamafactory.data.collator import FlatCollator, PackedCollator, PaddingCollator
from llamafactory.train.objective import Models
from llamafactory.train.sft.objective import count_supervised, objective_for


def weighed_rows(num_rows: int) -> list[Any]:
    """Rows whose first half is worth a third, every second row; the others say nothing."""
    rows: list[Any] = make_rows(num_rows)
    for row in rows[::2]:
        half = len(row["labels"]) // 2
        row["loss_weights"] = [0.0 if label < 0 else 0.3 if i < half else 1.7 for i, label in enumerate(row["labels"])]
    return rows


def test_n6_the_loss_is_the_weighed_sum_on_three_tokens(make_model: Callable[..., Any], tiny_tokenizer: Any):
    model = make_model().train()
    row = {"input_ids": [9, 5, 6, 7], "labels": [-100, 5, 6, 7], "loss_weights": [0.0, 0.3, 1.0, 2.0]}
    batch = PaddingCollator(tiny_tokenizer)([row])

    found = objective_for(model)(Models(model), batch)

    logps = model(input_ids=batch["input_ids"]).logits.detach().log_softmax(-1)[0, [0, 1, 2], [5, 6, 7]]
    expected = -(0.3 * logps[0] + 1.0 * logps[1] + 2.0 * logps[2])
    assert_close(found.total.detach(), expected, rtol=0, atol=1e-5)
    assert found.weight.item() == pytest.approx(3.3)
    assert count_supervised(batch).item() == pytest.approx(3.3)


def test_n6_an_evaluation_weighs_all_tokens_alike(make_model: Callable[..., Any], tiny_tokenizer: Any):
    model = make_model().eval()
    rows = weighed_rows(4)
    plain = [{name: value for name, value in row.items() if name != "loss_weights"} for row in rows]
    results = [objective_for(model)(Models(model), PaddingCollator(tiny_tokenizer)(some)) for some in (rows, plain)]
    assert_close(results[0].total, results[1].total)
    assert results[0].weight == results[1].weight


@pytest.mark.parametrize("make", [PaddingCollator, FlatCollator, PackedCollator])
def test_n1_weighed_losses_do_not_depend_on_how_a_step_is_cut(
    make_model: Callable[..., Any], make_trainer: Any, tiny_tokenizer: Any, make: Callable[..., Any]
):
    outcomes = []
    for collate, batch, accumulation in ((PaddingCollator(tiny_tokenizer), 8, 1), (make(tiny_tokenizer), 2, 4)):
        model = make_model()
        trainer = make_trainer(
            model,
            weighed_rows(16),
            parts=parts_for(model, collate=collate),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=0.1,
        )
        trainer.train()
        outcomes.append((torch.tensor(losses(trainer)), trained_weights(model)))
    assert_close(outcomes[1], outcomes[0], rtol=0, atol=1e-5)

    model = make_model()
    plain = [{**row, "loss_weights": None} for row in weighed_rows(16)]
    make_trainer(
        model,
        plain,
        parts=parts_for(model, collate=PaddingCollator(tiny_tokenizer)),
        per_device_train_batch_size=8,
        optim="sgd",
        learning_rate=0.1,
    ).train()
    assert (trained_weights(model) - outcomes[0][1]).abs().max() > 1e-4
