"""Our arguments as transformers' own; the learning rate that follows from them (row N41)."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_trainer import losses, make_rows

from llamafactory.extras.device import DeviceFacts
from llamafactory.extras.errors import UserError
from llamafactory.hparams.parser import get_train_args
from llamafactory.train.hf_args import to_hf_arguments
from llamafactory.train.stage import RunArguments


FAST, SLOW = DeviceFacts("cpu", 1, True, "CPU"), DeviceFacts("cpu", 1, False, "CPU")


def parse(tmp_path: Path, **keys: Any) -> RunArguments:
    needed = {"model_name_or_path": "m", "output_dir": str(tmp_path), "do_train": True, "dataset": "d", "stage": "sft"}
    return RunArguments(*get_train_args({**needed, **keys}))


def test_keys_arrive_under_their_names(tmp_path: Path):
    args = to_hf_arguments(
        parse(tmp_path, learning_rate=2e-4, num_train_epochs=2, warmup_ratio=0.1, lr_scheduler_type="cosine", seed=7),
        SLOW,
    )
    assert (args.learning_rate, args.num_train_epochs, args.seed) == (2e-4, 2, 7)
    assert args.get_warmup_steps(50) == 5
    assert args.report_to == []
    assert args.label_names == ["labels"]
    assert args.remove_unused_columns is False
    assert args.device == torch.device("cpu")
    assert args.generation_max_length == 2048


@pytest.mark.parametrize(
    ("keys", "facts", "expected"),
    [
        ({}, FAST, True),
        ({}, SLOW, False),
        ({"bf16": False}, FAST, False),
        ({"bf16": True}, SLOW, True),
        ({"pure_bf16": True}, FAST, False),  # weights in bf16, so nothing is cast
    ],
)
def test_bf16_is_chosen_by_the_device_unless_asked_for(tmp_path: Path, keys: Any, facts: DeviceFacts, expected: bool):
    args = to_hf_arguments(parse(tmp_path, **keys), facts)
    assert args.bf16 is expected
    assert args.fp16 is False


def test_early_stopping_watches_the_loss(tmp_path: Path):
    keys = {"early_stopping_steps": 2, "eval_strategy": "steps", "eval_steps": 5, "val_size": 0.1}
    args = to_hf_arguments(parse(tmp_path, **keys), SLOW)
    assert (args.metric_for_best_model, args.greater_is_better) == ("loss", False)


def test_shuffling_can_be_switched_off(tmp_path: Path):
    assert to_hf_arguments(parse(tmp_path, disable_shuffling=True), SLOW).train_sampling_strategy == "sequential"


def test_uploading_checkpoints_is_refused_not_ignored(tmp_path: Path):
    with pytest.raises(UserError, match="hub_strategy all_checkpoints"):
        to_hf_arguments(parse(tmp_path, push_to_hub=True, hub_strategy="all_checkpoints"), SLOW)


def test_what_transformers_refuses_is_a_user_error(tmp_path: Path):
    arguments = parse(tmp_path)
    object.__setattr__(arguments.training, "dataloader_prefetch_factor", 2)
    with pytest.raises(UserError, match="prefetch_factor"):
        to_hf_arguments(arguments, SLOW)


def schedule(kind: str, step: int, total: int, warmup: int) -> float:
    if step < warmup:
        return step / warmup
    share = (step - warmup) / (total - warmup)
    plateau = (total - warmup) // 3  # of warmup_stable_decay, unless told
    late = max(step - warmup - plateau, 0) / (total - warmup - plateau)
    return {
        "linear": 1 - share,
        "cosine": 0.5 * (1 + math.cos(math.pi * share)),
        "constant_with_warmup": 1.0,
        "polynomial": 1e-7 / 0.01 + (1 - 1e-7 / 0.01) * (1 - share),
        "inverse_sqrt": (warmup / step) ** 0.5 if step else 0.0,
        "warmup_stable_decay": 0.5 * (1 + math.cos(math.pi * late)),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["linear", "cosine", "constant_with_warmup", "polynomial", "inverse_sqrt", "warmup_stable_decay"]
)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_n41_learning_rate_follows_the_formula(
    tmp_path: Path, make_model: Callable[..., Any], make_trainer: Any, kind: str, accumulation: int
):
    keys = {"warmup_ratio": 0.25, "lr_scheduler_type": kind, "learning_rate": 0.01, "num_train_epochs": 2}
    args = to_hf_arguments(parse(tmp_path, **keys), SLOW)
    total = 2 * 6
    trainer = make_trainer(
        make_model(),
        make_rows(24),
        per_device_train_batch_size=4 // accumulation,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=args.num_train_epochs,
        learning_rate=args.learning_rate,
        lr_scheduler_type=args.lr_scheduler_type,
        warmup_steps=args.warmup_steps,
        save_strategy="steps",
        save_steps=5,
    )
    trainer.train()
    expected = [0.01 * schedule(kind, step, total, math.ceil(0.25 * total)) for step in range(total)]
    assert losses(trainer, "learning_rate") == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "settings", "lowest", "first"),
    [
        ("warmup_stable_decay", {"num_stable_steps": 8, "decay_type": "linear"}, 0.0025, 8),
        ("warmup_stable_decay", {"num_decay_steps": 4, "min_lr_ratio": 0.5}, 0.005, 8),
        ("cosine_with_min_lr", {"min_lr_rate": 0.2}, 0.002, 0),
        ("cosine_with_restarts", {"num_cycles": 2}, 0.0, 0),
    ],
)
def test_n41_settings_of_a_schedule_are_kept_and_completed(
    make_model: Callable[..., Any], make_trainer: Any, kind: str, settings: Any, lowest: float, first: int
) -> None:
    """The rate is the whole one up to the step `first`, and never under the lowest."""
    trainer = make_trainer(
        make_model(),
        make_rows(12),
        per_device_train_batch_size=1,
        num_train_epochs=1,
        learning_rate=0.01,
        lr_scheduler_type=kind,
        lr_scheduler_kwargs=settings,
        save_strategy="no",
    )
    trainer.train()
    rates = losses(trainer, "learning_rate")
    assert rates[: first + 1] == pytest.approx([0.01] * (first + 1))
    assert all(rate < 0.01 for rate in rates[first + 1 : 6] + rates[-1:])
    assert min(rates) >= lowest - 1e-12
    assert trainer.args.lr_scheduler_kwargs == settings
