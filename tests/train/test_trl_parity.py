"""Row N25: where the installed TRL knows a loss, it gives the same value and gradient. TRL is not needed otherwise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_pairs import dpo_parts, shift_weights
from torch.testing import assert_close

from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.ops.preference import PREFERENCE_LOSSES
from llamafactory.train.objective import Models


pytest.importorskip("trl", reason="TRL is not installed")

ELSEWHERE = {"orpo", "simpo", "kto_pair"}  # in TRL these have other trainers, or are gone
TEXTS = [
    {"prompt": "Count to three:", "chosen": " one two three", "rejected": " three"},
    {"prompt": "Say eight.", "chosen": " eight", "rejected": " one two three four five six"},
    {"prompt": "What comes after two?", "chosen": " three, of course", "rejected": " seven or eight"},
]


def gradient(model: Any) -> torch.Tensor:
    found = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.requires_grad])
    model.zero_grad()
    return found


@pytest.mark.parametrize("name", [name for name in PREFERENCE_LOSSES.names() if name not in ELSEWHERE])
@pytest.mark.parametrize("ld_alpha", [None, 0.4])
def test_n25_losses_equal_those_of_trl(
    make_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path, name: str, ld_alpha: float | None
):
    from trl import DPOConfig, DPOTrainer

    model, own = make_model("lora"), shift_weights(make_model("lora"))  # TRL changes how its model is called
    smoothing = 0.1 if name in ("sigmoid", "robust", "exo_pair") else 0.0
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=str(tmp_path),
            loss_type=name,
            beta=0.3,
            label_smoothing=0.0 if name == "sigmoid" else smoothing,
            ld_alpha=ld_alpha,
            use_cpu=True,
            bf16=False,
            report_to="none",
            gradient_checkpointing=False,
        ),
        processing_class=tiny_tokenizer,
        train_dataset=Dataset.from_list(TEXTS),
    )
    shift_weights(model)  # now, as TRL keeps the adapter that it is given as the reference
    encoded = [trainer.train_dataset[index] for index in range(len(TEXTS))]
    theirs = trainer.compute_loss(model, trainer.data_collator(encoded))
    theirs.backward()
    their_gradient = gradient(model)

    rows = [
        {
            f"{side}_{kind}": (row["prompt_ids"] if kind == "input_ids" else [IGNORE_INDEX] * len(row["prompt_ids"]))
            + row[f"{side}_ids"]
            for side in ("chosen", "rejected")
            for kind in ("input_ids", "labels")
        }
        for row in encoded
    ]
    settings = {"pref_loss": name, "pref_beta": 0.3, "ld_alpha": ld_alpha}
    parts = dpo_parts(own, **settings, dpo_label_smoothing=0.0 if name == "sigmoid" else smoothing)
    ours = parts.objective(Models(own), parts.collate(rows))
    (ours.total / ours.weight).backward()

    assert_close(ours.total / ours.weight, theirs, rtol=5e-6, atol=1e-6)  # two float32 ways to the same sums
    assert_close(gradient(own), their_gradient, rtol=1e-4, atol=2e-5)
