"""A Trainer over tiny models and rows of very different lengths, put together without the workflow."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments

from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.train.objective import Batch
from llamafactory.train.sft.objective import count_supervised, objective_for
from llamafactory.train.stage import StageParts
from llamafactory.train.trainer import CustomSeq2SeqTrainer


Row = dict[str, list[int]]


def make_rows(num_rows: int, vocabulary: int = 300, seed: int = 0) -> list[Row]:
    """Rows whose numbers of supervised tokens differ by more than ten times."""
    generator = torch.Generator().manual_seed(seed)
    rows: list[Row] = []
    for _ in range(num_rows):
        length = int(torch.randint(4, 40, (), generator=generator))
        prompt = int(torch.randint(1, length - 1, (), generator=generator))
        ids = torch.randint(3, vocabulary, (length,), generator=generator).tolist()
        labels = [IGNORE_INDEX] * prompt + ids[prompt:]
        rows.append({"input_ids": ids, "attention_mask": [1] * length, "labels": labels})
    return rows


def pad_right(rows: list[Row]) -> Batch:
    width = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": IGNORE_INDEX}
    return {
        name: torch.tensor([row[name] + [value] * (width - len(row[name])) for row in rows])
        for name, value in fill.items()
    }


def with_lora(model: Any, dropout: float = 0.0) -> Any:
    """The model under a LoRA adapter that is the same at each call."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        adapted = get_peft_model(
            model,
            LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
    return adapted


def trained_weights(model: Any) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters() if weight.requires_grad])


def parts_for(model: Any, **changes: Any) -> StageParts:
    parts = StageParts(collate=pad_right, objective=objective_for(model), weigh=count_supervised)
    return replace(parts, **changes)


@dataclass(frozen=True)
class TrainerMaker:
    """Makes trainers with the same defaults."""

    output_dir: Path

    def __call__(
        self,
        model: Any,
        rows: list[Row],
        *,
        parts: StageParts | None = None,
        callbacks: Iterable[Any] = (),
        eval_rows: Any = None,
        **arguments: Any,
    ) -> CustomSeq2SeqTrainer:
        defaults: dict[str, Any] = {
            "output_dir": str(self.output_dir),
            "per_device_train_batch_size": 4,
            "num_train_epochs": 1,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
            "report_to": "none",
            "label_names": ["labels"],
            "remove_unused_columns": False,
        }
        args = Seq2SeqTrainingArguments(**{**defaults, **arguments})
        return CustomSeq2SeqTrainer(
            model,
            args,
            parts or parts_for(model),
            callbacks=callbacks,
            train_dataset=rows,
            eval_dataset=eval_rows,
        )


def losses(trainer: CustomSeq2SeqTrainer, name: str = "loss") -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]
