"""A run that cannot learn any more is stopped with the rows that stopped it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stage_runs import STAGES, stage_keys
from tiny_pairs import make_pairs
from torch import nn
from transformers import TrainerCallback

from llamafactory.data.collator import FlatCollator, PaddingCollator
from llamafactory.data.packing import join_documents
from llamafactory.data.shared_prefix import SharedPrefixCollator
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.extras.errors import UserError
from llamafactory.train.callbacks.diagnosis import Diagnosis
from llamafactory.train.objective import Batch, LossSum, Models
from llamafactory.train.row_search import find_rows, split_documents
from llamafactory.train.stage import StageParts
from llamafactory.train.tuner import run_exp


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
    documents = split_documents(collator(tiny_tokenizer)(rows))
    assert [list(document.ids) for document in documents] == [row["input_ids"] for row in rows]
    assert find_rows(documents, rows[::-1]) == {0: 2, 1: 1, 2: 0}


def test_documents_in_packed_rows_and_pairs_with_one_prompt_are_found_too(tiny_tokenizer: Any) -> None:
    packed = [join_documents(ROWS[:2]), join_documents(ROWS[2:5])]
    assert find_rows(split_documents(FlatCollator(tiny_tokenizer)([packed[1]])), packed) == {0: 1, 1: 1, 2: 1}
    pairs = make_pairs(4)
    sides = [
        {name: row[f"{side}_{name}"] for name in ("input_ids", "labels")}
        for side in ("chosen", "rejected")
        for row in pairs
    ]
    documents = split_documents(SharedPrefixCollator(tiny_tokenizer, 16)(sides))
    assert [list(document.ids) for document in documents] == [row["input_ids"] for row in sides]
    assert find_rows(documents, pairs) == {place: place % 4 for place in range(8)}


class Poison(TrainerCallback):
    """Breaks the weights before the second step."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        with torch.no_grad():
            model.get_input_embeddings().weight.fill_(float("nan"))


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_names_the_rows_of_a_loss_that_is_not_a_number(
    tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path, stage: str
) -> None:
    changes = {"save_strategy": "no", **({"packing": True} if stage == "sft" else {})}
    keys = stage_keys(stage, "lora", tiny_llama_dir, demo_dataset_dir, tmp_path / "out", **changes)
    with pytest.raises(UserError, match="became nan in step 2") as caught:
        run_exp(keys, callbacks=[Poison()])
    named = re.findall(r"row (\d+) \('([^']*)", str(caught.value))
    assert 1 <= len(named) <= 8
    assert len({number for number, _ in named}) == len(named)
    assert all(int(number) < 40 for number, _ in named)
    assert not re.search(r"\ba row\b", str(caught.value))
