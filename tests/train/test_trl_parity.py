"""Rows N25, N32: where the installed TRL knows a loss, it has the same value and gradient. Nothing else needs TRL."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_pairs import dpo_parts, kto_parts, shift_weights
from torch.testing import assert_close

from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.ops.preference import PREFERENCE_LOSSES, LossSettings, PairLogProbs
from llamafactory.train.objective import Models


pytest.importorskip("trl", reason="TRL is not installed")

ELSEWHERE = {"orpo", "simpo", "kto_pair"}  # in TRL the first two have trainers of their own; the third is gone
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


@pytest.mark.parametrize("name", ["orpo", "simpo"])
def test_n25_losses_without_a_reference_equal_those_of_trl(name: str):
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    lengths = torch.tensor([[3, 5, 1, 7], [4, 2, 6, 7]])
    sums = [-lengths[side] * torch.tensor([0.3, 1.2, 2.0, 0.1]).roll(side) for side in (0, 1)]
    settings = LossSettings(beta=0.3, gamma=0.7)
    found = []
    for ours in (True, False):
        chosen, rejected = (value.clone().requires_grad_() for value in sums)
        if ours:
            pairs = PairLogProbs(chosen, rejected, torch.zeros(4), torch.zeros(4), lengths[0], lengths[1])
            losses = PREFERENCE_LOSSES.get(name).compute(pairs, settings).losses_N
        else:
            trainer = SimpleNamespace(
                beta=0.3,
                simpo_gamma=0.7,
                alpha=0.0,
                label_smoothing=0.0,
                loss_type="simpo",
                accelerator=SimpleNamespace(device="cpu"),
            )
            means = chosen / lengths[0], rejected / lengths[1]
            kind, losses_of = (ORPOTrainer, "odds_ratio_loss") if name == "orpo" else (CPOTrainer, "cpo_loss")
            losses = getattr(kind, losses_of)(trainer, *means)[0]
            losses = -means[0] - losses if name == "orpo" else losses  # TRL adds the loss of SFT elsewhere
        found.append((losses.detach(), *torch.autograd.grad(losses.sum(), [chosen, rejected])))
    for mine, theirs in zip(*found, strict=True):
        assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


def test_n32_the_loss_of_kto_equals_that_of_trl(make_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path):
    from trl import KTOConfig, KTOTrainer

    rows = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in TEXTS
        for side in ("chosen", "rejected")
    ]
    model, own = make_model("lora"), shift_weights(make_model("lora"))
    trainer = KTOTrainer(
        model=model,
        args=KTOConfig(
            output_dir=str(tmp_path),
            beta=0.3,
            desirable_weight=1.5,
            undesirable_weight=0.8,
            per_device_train_batch_size=len(rows),
            use_cpu=True,
            bf16=False,
            report_to="none",
            gradient_checkpointing=False,
        ),
        processing_class=tiny_tokenizer,
        train_dataset=Dataset.from_list(rows),
    )
    shift_weights(model)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(len(rows))])
    theirs = trainer.compute_loss(model, dict(batch))
    theirs.backward()
    their_gradient = gradient(model)

    def answers(prefix: str, kind: str) -> list[dict[str, list[int]]]:
        ids, mask, learned = (batch[f"{prefix}{name}"] for name in ("input_ids", "attention_mask", "completion_mask"))
        labels = ids.masked_fill(learned == 0, IGNORE_INDEX)
        return [
            {f"{kind}input_ids": row[real.bool()].tolist(), f"{kind}labels": label[real.bool()].tolist()}
            for row, real, label in zip(ids, mask, labels, strict=True)
        ]

    pairs = zip(answers("", ""), answers("KL_", "kl_"), batch["label"].tolist(), strict=True)
    marked = [{**row, **other, "kto_tags": bool(label)} for row, other, label in pairs]
    parts = kto_parts(own, pref_beta=0.3, kto_chosen_weight=1.5, kto_rejected_weight=0.8)
    models, mine = Models(own), parts.collate(marked)
    shared = parts.survey(models, [(mine, True)], is_training=True)
    ours = parts.objective(models, {**mine, **shared})
    (ours.total / ours.weight).backward()

    assert_close(ours.total / ours.weight, theirs, rtol=5e-6, atol=1e-6)
    assert_close(gradient(own), their_gradient, rtol=1e-4, atol=2e-5)
