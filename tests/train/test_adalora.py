"""AdaLoRA: the ranks fall to the wanted mean, the penalty is the paper's, and no pruned direction comes back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from model_making import load, tuning
from transformers import TrainerCallback

from llamafactory.extras.errors import UserError
from llamafactory.model.adapters.adalora import ranks_of
from llamafactory.train.tuner import run_exp


class Watch(TrainerCallback):
    def __init__(self) -> None:
        self.kept: list[list[int]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        ranks = ranks_of(model)
        assert ranks is not None
        self.kept.append(list(ranks.kept().values()))


def config(model: Path, data: Path, output: Path, **more: Any) -> dict[str, Any]:
    return {
        "model_name_or_path": str(model),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "adalora",
        "lora_rank": 2,
        "adalora_init_rank": 4,
        "dataset": "tiny_alpaca",
        "dataset_dir": str(data),
        "cutoff_len": 64,
        "output_dir": str(output),
        "learning_rate": 1e-2,
        "max_steps": 8,
        "save_strategy": "no",
        "report_to": "none",
        **more,
    }


def test_the_ranks_fall_to_the_wanted_mean_and_stay(
    tmp_path: Path, tiny_llama_dir: Path, demo_dataset_dir: Path
) -> None:
    watch = Watch()

    run_exp(
        config(tiny_llama_dir, demo_dataset_dir, tmp_path / "a", adalora_start=2, adalora_end=2), callbacks=[watch]
    )

    means = [sum(kept) / len(kept) for kept in watch.kept]
    assert means[:2] == [4.0, 4.0]
    assert means[2:5] == sorted(means[2:5], reverse=True)
    assert means[5:] == [2.0, 2.0, 2.0]
    assert len(set(watch.kept[-1])) > 1  # some layers keep more than others
    assert watch.kept[5] == watch.kept[7]


def test_the_penalty_is_zero_for_orthogonal_directions_and_the_papers_otherwise(tiny_llama_dir: Path) -> None:
    model = load(tiny_llama_dir, tuning("adalora", lora_rank=2), disable_gradient_checkpointing=True)
    ranks = ranks_of(model)
    assert ranks is not None
    terms = []
    for name, weight in model.named_parameters():
        if ".lora_A." in name:
            terms.append(float((weight @ weight.T - torch.eye(3)).norm()))
        elif ".lora_B." in name:
            terms.append(float((weight.T @ weight - torch.eye(3)).norm()))

    assert float(ranks.penalty()) == pytest.approx(0.5 * sum(terms) / len(terms), rel=1e-5)
    for name, weight in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            torch.nn.init.orthogonal_(weight)
    assert float(ranks.penalty()) < 1e-5


def test_a_run_without_steps_to_move_the_ranks_is_refused(
    tmp_path: Path, tiny_llama_dir: Path, demo_dataset_dir: Path
) -> None:
    with pytest.raises(UserError, match="leaves none of this run's 8"):
        run_exp(config(tiny_llama_dir, demo_dataset_dir, tmp_path / "a", adalora_start=4, adalora_end=4))
