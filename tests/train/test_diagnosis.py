"""A run that cannot learn any more is stopped with the rows that stopped it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from llamafactory.data.collator import FlatCollator, PaddingCollator
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.extras.errors import UserError
from llamafactory.train.callbacks.diagnosis import Diagnosis, find_rows, split_documents
from llamafactory.train.objective import Batch, LossSum, Models
from llamafactory.train.stage import StageParts


ROWS = [{"input_ids": [5, 6, 7 + index], "labels": [IGNORE_INDEX, 6, 7 + index]} for index in range(6)]


class PoisonedObjective:
    """The model's loss until a row with a given token comes; then `value` times it."""

    def __init__(self, token: int, value: float) -> None:
        self.token, self.value = token, value

    def __call__(self, models: Models, batch: Batch) -> LossSum:
        policy: nn.Module = models.policy
        logits = policy(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        factor = torch.where((batch["input_ids"] == self.token).any(), self.value, 1.0)
        return LossSum(logits.logsumexp(-1).sum() * factor, torch.tensor(4))


@pytest.mark.parametrize(
    ("value", "message"),
    [(float("nan"), "The loss became nan in step 3"), (float("inf"), "became inf"), (0.0, "exactly 0")],
)
def test_a_broken_loss_names_step_and_row(
    value: float, message: str, make_trainer: Any, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    parts = StageParts(
        collate=PaddingCollator(tiny_tokenizer),
        objective=PoisonedObjective(9, value),
        weigh=lambda batch: torch.tensor(4),
    )
    trainer = make_trainer(
        make_model(),
        ROWS,
        parts=parts,
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
        max_steps=5,
    )
    trainer.diagnosis = Diagnosis(tiny_tokenizer)
    trainer.add_callback(trainer.diagnosis)
    before = [p.clone() for p in trainer.model.parameters()]
    with pytest.raises(UserError, match=message) as caught:
        trainer.train()
    assert "row 2 (" in str(caught.value)
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert any(not torch.equal(p, q) for p, q in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.parametrize("collator", [PaddingCollator, FlatCollator])
def test_documents_are_found_again(collator: Any, tiny_tokenizer: Any) -> None:
    rows = [{"input_ids": [3] * length, "labels": [3] * length} for length in (2, 4, 3)]
    documents = list(split_documents(collator(tiny_tokenizer)(rows)))
    assert documents == [row["input_ids"] for row in rows]
    assert find_rows(documents, rows[::-1]) == {0: 2, 1: 1, 2: 0}
