"""Row N40: a run that is stopped and resumed equals one that never stopped, bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_trainer import losses, make_rows, trained_weights
from transformers import TrainerCallback

from llamafactory.train.callbacks.early_stopping import early_stopping_callbacks
from llamafactory.train.checkpoints import list_checkpoints


class StopAfter(TrainerCallback):
    """Ends training after a step, as if the process had ended there."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            control.should_training_stop = True


def run(make_trainer: Any, model: Any, *, stop: int | None = None, resume: str | None = None, **arguments: Any) -> Any:
    trainer = make_trainer(
        model,
        make_rows(22),
        eval_rows=make_rows(5, seed=9),
        callbacks=[StopAfter(stop)] if stop else [],
        **{
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "num_train_epochs": 3,
            "save_strategy": "steps",
            "save_steps": 4,
            "eval_strategy": "steps",
            "eval_steps": 3,
            "logging_steps": 3,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.1,
            **arguments,
        },
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def fingerprint(trainer: Any) -> dict[str, Any]:
    optimizer = trainer.optimizer.state_dict()["state"]
    return {
        "weights": trained_weights(trainer.model),
        "optimizer": [value for key in sorted(optimizer) for value in optimizer[key].values()],
        "scheduler": trainer.lr_scheduler.state_dict(),
        "random": torch.random.get_rng_state(),
        "best": (trainer.state.best_metric, trainer.state.best_global_step),
    }


def assert_same(left: Any, right: Any) -> None:
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    else:
        assert left == right


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("stop", [4, 8])  # in the middle of the first and of the second epoch (6 steps each)
def test_n40_resumed_run_equals_the_uninterrupted_one(
    make_model: Callable[..., Any], make_trainer: Any, method: str, stop: int
):
    dropout = 0.2 if method == "lora" else 0.0  # so that the random numbers matter
    whole = run(make_trainer, make_model(method, dropout), output_dir=str(make_trainer.output_dir / "whole"))
    run(make_trainer, make_model(method, dropout), stop=stop)
    checkpoint = list_checkpoints(make_trainer.output_dir)[-1]
    assert checkpoint.name == f"checkpoint-{stop}"
    resumed = run(make_trainer, make_model(method, dropout), resume=str(checkpoint))

    assert whole.state.global_step == resumed.state.global_step == 18
    assert_same(fingerprint(whole), fingerprint(resumed))
    assert losses(whole) == losses(resumed)
    assert losses(whole, "eval_loss") == losses(resumed, "eval_loss")
    assert losses(whole, "train_loss") == losses(resumed, "train_loss")


def test_resume_at_the_end_of_an_epoch_keeps_the_order_of_the_data(make_model: Callable[..., Any], make_trainer: Any):
    whole = run(make_trainer, make_model(), save_steps=6, output_dir=str(make_trainer.output_dir / "whole"))
    run(make_trainer, make_model(), save_steps=6, stop=6)
    resumed = run(make_trainer, make_model(), save_steps=6, resume=str(make_trainer.output_dir / "checkpoint-6"))
    assert_same(fingerprint(whole), fingerprint(resumed))


def test_rows_grouped_by_length_keep_their_order_too(make_model: Callable[..., Any], make_trainer: Any):
    grouped = {"train_sampling_strategy": "group_by_length"}
    whole = run(make_trainer, make_model(), **grouped, output_dir=str(make_trainer.output_dir / "whole"))
    run(make_trainer, make_model(), **grouped, stop=8)
    resumed = run(make_trainer, make_model(), **grouped, resume=str(make_trainer.output_dir / "checkpoint-8"))
    assert_same(fingerprint(whole), fingerprint(resumed))


def test_a_resumed_run_that_was_at_its_end_only_finishes(make_model: Callable[..., Any], make_trainer: Any):
    whole = run(make_trainer, make_model(), max_steps=8)
    resumed = run(make_trainer, make_model(), max_steps=8, resume=str(make_trainer.output_dir / "checkpoint-8"))
    assert resumed.state.global_step == 8
    assert torch.equal(trained_weights(whole.model), trained_weights(resumed.model))
    assert losses(whole, "train_loss") == losses(resumed, "train_loss")[-1:]


def test_intervals_asked_for_now_win_over_those_of_the_checkpoint(make_model: Callable[..., Any], make_trainer: Any):
    run(make_trainer, make_model(), stop=4)
    checkpoint = str(make_trainer.output_dir / "checkpoint-4")
    resumed = run(make_trainer, make_model(), resume=checkpoint, save_steps=5, max_steps=11)
    assert resumed.state.save_steps == 5
    assert [folder.name for folder in list_checkpoints(make_trainer.output_dir)] == [
        "checkpoint-4",
        "checkpoint-5",
        "checkpoint-10",
        "checkpoint-11",
    ]


def test_early_stopping_counts_on_after_a_resume(make_model: Callable[..., Any], make_trainer: Any):
    arguments = {
        "learning_rate": 0.0,  # nothing ever improves after the first evaluation
        "num_train_epochs": 6,
        "logging_steps": 1,
        "save_steps": 1,
        "eval_steps": 1,
        "metric_for_best_model": "loss",
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "load_best_model_at_end": True,
    }

    def train(patience: int, stop: int | None = None, resume: str | None = None) -> int:
        trainer = make_trainer(
            make_model(),
            make_rows(22),
            eval_rows=make_rows(5, seed=9),
            callbacks=[*early_stopping_callbacks(patience), *([StopAfter(stop)] if stop else [])],
            save_strategy="steps",
            eval_strategy="steps",
            **arguments,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer.state.global_step

    assert train(patience=4) == 5
    assert train(patience=4, stop=3) == 3
    assert train(patience=4, resume=str(make_trainer.output_dir / "checkpoint-3")) == 5
    assert train(patience=6, resume=str(make_trainer.output_dir / "checkpoint-3")) == 7


def test_n46_the_same_seed_gives_the_same_weights(make_model: Callable[..., Any], make_trainer: Any, tmp_path: Path):
    results = []
    for name, workers in (("a", 0), ("b", 0), ("c", 2)):
        trainer = run(
            make_trainer,
            make_model("lora", 0.2),
            output_dir=str(tmp_path / name),
            dataloader_num_workers=workers,
            num_train_epochs=1,
        )
        results.append(trained_weights(trainer.model))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_checkpoints_hold_safetensors_and_nothing_that_unpickles_freely(
    make_model: Callable[..., Any], make_trainer: Any
):
    run(make_trainer, make_model("lora"), stop=4)
    checkpoint = make_trainer.output_dir / "checkpoint-4"
    assert load_file(checkpoint / "adapter_model.safetensors")
    assert not (checkpoint / "training_args.bin").exists()
    for name in ("optimizer.pt", "scheduler.pt"):
        assert torch.load(checkpoint / name, weights_only=True)
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == 4
