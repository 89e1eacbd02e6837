"""Batches that hold as many rows as fit into a token budget: rows N1, N2, N24 and N40 of the correctness list."""

import json
import logging
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_resume import StopAfter, assert_same, fingerprint
from test_two_ranks import SCRIPTS, start
from tiny_trainer import losses, make_rows, pad_right, parts_for, trained_weights
from token_ranks import BUDGET, NUM_ROWS
from torch import nn
from torch.testing import assert_close

from llamafactory.data.batch_plan import BatchPlan, BatchSize
from llamafactory.data.lengths import sequence_lengths
from llamafactory.train.batches import FILLER, make_plan, size_of, train_loader


def budget_trainer(make_trainer: Any, model: Any, rows: list[Any], max_tokens: int, **arguments: Any) -> Any:
    parts = parts_for(model, batch_limit=BatchSize(max_tokens=max_tokens))
    return make_trainer(model, rows, parts=parts, **arguments)


def numbered_rows(num_rows: int) -> list[Any]:
    """Rows that begin with their number."""
    return [{**row, "input_ids": [index, *row["input_ids"][1:]]} for index, row in enumerate(make_rows(num_rows))]


def test_n1_a_step_is_divided_by_the_tokens_of_the_rows_it_took(make_model: Callable[..., Any], make_trainer: Any):
    rows = make_rows(15)
    model = make_model()
    trainer = budget_trainer(
        make_trainer,
        model,
        rows,
        80,
        gradient_accumulation_steps=2,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
    )
    trainer.train()

    plan = BatchPlan(sequence_lengths(rows), BatchSize(max_tokens=80), "random", seed=42)
    batches = [batch.tolist() for batch in plan.epoch(0)]
    assert len({len(batch) for batch in batches}) > 1
    expected = make_model()
    for first in range(0, len(batches), 2):
        step_rows = [rows[index] for batch in batches[first : first + 2] for index in batch]
        batch = pad_right(step_rows)
        logits = expected(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        mean = nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())
        expected.zero_grad()
        mean.backward()
        with torch.no_grad():
            for weight in expected.parameters():
                weight -= 0.1 * weight.grad
    assert trainer.state.global_step == math.ceil(len(batches) / 2)
    assert_close(trained_weights(model), trained_weights(expected), rtol=0, atol=1e-6)


def test_the_steps_of_a_run_are_known_before_the_first(make_model: Callable[..., Any], make_trainer: Any):
    rows = make_rows(40)
    trainer = budget_trainer(make_trainer, make_model(), rows, 60, gradient_accumulation_steps=3, num_train_epochs=6)
    trainer.train()
    per_epoch = math.ceil(trainer.batch_plan.num_batches / 3)
    assert trainer.state.global_step == trainer.state.max_steps == 6 * per_epoch
    assert trainer.state.epoch == 6.0
    assert trainer.meter.num_tokens == 6 * sum(len(row["input_ids"]) for row in rows)

    limited = budget_trainer(make_trainer, make_model(), rows, 60, gradient_accumulation_steps=3, max_steps=per_epoch)
    limited.train()
    assert limited.state.epoch == 1.0
    assert limited.state.num_train_epochs == 1


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
@pytest.mark.parametrize("stop", [3, 8])
def test_n40_a_resumed_run_takes_the_same_batches(
    make_model: Callable[..., Any], make_trainer: Any, strategy: str, stop: int
):
    def run(name: str, callbacks: Any = (), resume: str | None = None) -> Any:
        trainer = budget_trainer(
            make_trainer,
            make_model("lora", 0.2),
            make_rows(30),
            70,
            output_dir=str(make_trainer.output_dir / name),
            callbacks=callbacks,
            gradient_accumulation_steps=2,
            num_train_epochs=2,
            save_strategy="steps",
            save_steps=stop,
            train_sampling_strategy=strategy,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run("whole")
    run("half", [StopAfter(stop)])
    resumed = run("half", resume=str(make_trainer.output_dir / "half" / f"checkpoint-{stop}"))
    assert whole.state.global_step == resumed.state.global_step > stop
    assert_same(fingerprint(whole), fingerprint(resumed))
    assert losses(whole) == losses(resumed)


@pytest.mark.parametrize("size", [BatchSize(2), BatchSize(max_tokens=64)])
@pytest.mark.parametrize("strategy", ["random", "sequential", "group_by_length"])
def test_n24_each_row_once_per_epoch_over_4_workers_and_2_ranks(make_trainer: Any, size: BatchSize, strategy: str):
    from transformers import Seq2SeqTrainingArguments

    rows = numbered_rows(23)
    args = Seq2SeqTrainingArguments(
        output_dir=str(make_trainer.output_dir),
        train_sampling_strategy=strategy,
        dataloader_num_workers=4,
        use_cpu=True,
    )
    plan = make_plan(rows, size, args, num_ranks=2)
    loaders = [train_loader(rows, plan, pad_right, args, rank) for rank in (0, 1)]
    orders: list[list[int]] = []
    for epoch in (0, 1):
        taken: list[int] = []
        for loader in loaders:
            loader.set_epoch(epoch)
            batches = list(loader)
            assert len(batches) == plan.num_batches
            real = [batch["input_ids"][:, 0].tolist() for batch in batches if FILLER not in batch]
            taken += [number for numbers in real for number in numbers]
        assert Counter(taken) == Counter(range(23))
        orders.append(taken)
    assert (orders[0] == orders[1]) == (strategy == "sequential")


def test_a_filler_counts_for_nothing(make_model: Callable[..., Any], make_trainer: Any):
    rows = make_rows(3)
    with_filler, without = (make_model() for _ in range(2))
    for model, fillers in ((with_filler, 1), (without, 0)):
        trainer = make_trainer(model, rows, optim="sgd", learning_rate=0.1, gradient_accumulation_steps=4)
        plan = Filled(trainer.batch_plan, fillers)
        trainer.__dict__["batch_plan"] = plan  # what two ranks would give one of them
        trainer.train()
        assert trainer.meter.num_tokens == sum(len(row["input_ids"]) for row in rows)
    assert_close(trained_weights(with_filler), trained_weights(without), rtol=0, atol=0)


class Filled:
    """A plan of one rank that ends with fillers."""

    def __init__(self, plan: BatchPlan, num_fillers: int) -> None:
        self.plan, self.num_fillers, self.num_ranks, self.cheapest_row = plan, num_fillers, 1, 0

    @property
    def num_batches(self) -> int:
        return self.plan.num_batches + self.num_fillers

    def epoch(self, number: int) -> list[Any]:
        return [*self.plan.epoch(number), *[torch.zeros(0).numpy()] * self.num_fillers]


def test_a_row_longer_than_the_budget_is_said_once(make_trainer: Any, caplog: pytest.LogCaptureFixture):
    from transformers import Seq2SeqTrainingArguments

    args = Seq2SeqTrainingArguments(output_dir=str(make_trainer.output_dir), use_cpu=True)
    logger = logging.getLogger("llamafactory")
    logger.addHandler(caplog.handler)
    for _ in range(2):
        make_plan(make_rows(20), BatchSize(max_tokens=21), args, num_ranks=1)
    logger.removeHandler(caplog.handler)
    longer = sum(len(row["input_ids"]) > 21 for row in make_rows(20))
    (message,) = {id(record): record.getMessage() for record in caplog.records}.values()
    assert message.startswith(f"{longer} of 20 rows are longer than max_batch_tokens 21")


def test_flat_batches_count_no_padding(tiny_tokenizer: Any):
    from llamafactory.data.collator import FlatCollator, PaddingCollator
    from llamafactory.hparams import DataArguments, TrainingArguments

    data, training = DataArguments(max_batch_tokens=100), TrainingArguments(output_dir="x")
    assert size_of(FlatCollator(tiny_tokenizer, 8), data, training) == BatchSize(8, 100, pads=False, multiple=8)
    assert size_of(PaddingCollator(tiny_tokenizer), data, training) == BatchSize(8, 100, pads=True)


@pytest.mark.slow
def test_n2_two_ranks_with_a_filler_equal_one(tiny_llama_dir: Path, tmp_path: Path):
    plan = BatchPlan(sequence_lengths(make_rows(NUM_ROWS)), BatchSize(max_tokens=BUDGET), num_ranks=2)
    assert sum(len(batch) == 0 for batch in plan.epoch(0)) == 1
    outcomes: list[dict[str, Any]] = []
    weights = []
    for num_ranks, accumulation in ((1, 2), (2, 1)):
        out = tmp_path / f"ranks{num_ranks}"
        processes = start(SCRIPTS / "token_ranks.py", num_ranks, str(tiny_llama_dir), str(out), str(accumulation))
        assert [process.wait(timeout=300) for process in processes] == [0] * num_ranks
        outcomes.append(json.loads((out / "outcome.json").read_text()))
        weights.append(load_file(out / "weights.safetensors")["weights"])
    one, two = outcomes
    assert one["tokens"] == two["tokens"] == 2 * sum(len(row["input_ids"]) for row in make_rows(NUM_ROWS))
    assert one["steps"] == two["steps"] == 14
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert_close(weights[1], weights[0], rtol=0, atol=1e-6)
