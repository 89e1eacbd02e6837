"""trainer_log.jsonl and the short lines beside the progress bar."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from test_resume import StopAfter
from tiny_trainer import losses, make_rows

from llamafactory.train.callbacks.log import LogCallback
from llamafactory.train.callbacks.progress import log_line


ORDER = [
    "current_steps",
    "total_steps",
    "loss",
    "eval_loss",
    "grad_norm",
    "lr",
    "epoch",
    "percentage",
    "elapsed_time",
    "remaining_time",
    "throughput",
    "total_tokens",
]


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text().splitlines()]


def logging_trainer(make_trainer: Any, model: Any, **arguments: Any) -> Any:
    trainer = make_trainer(model, make_rows(20), eval_rows=make_rows(12, seed=2), **arguments)
    trainer.add_callback(LogCallback(trainer.meter))
    return trainer


def test_every_log_is_a_line_with_the_expected_keys(make_model: Callable[..., Any], make_trainer: Any):
    trainer = logging_trainer(make_trainer, make_model(), eval_strategy="steps", eval_steps=5)
    trainer.train()
    lines = read_log(make_trainer.output_dir)
    steps, evaluation, summary = lines[:5], lines[5], lines[6]
    assert [line["loss"] for line in steps] == losses(trainer)
    for number, line in enumerate(steps, start=1):
        assert list(line) == [name for name in ORDER if name != "eval_loss"]
        assert (line["current_steps"], line["total_steps"], line["percentage"]) == (number, 5, 20.0 * number)
    assert list(evaluation) == [name for name in ORDER if name not in ("loss", "grad_norm", "lr")]
    assert "loss" not in summary
    num_tokens = sum(len(row["input_ids"]) for row in make_rows(20))
    assert summary["total_tokens"] == num_tokens
    assert steps[-1]["remaining_time"] == "0:00:00"


def test_a_resumed_run_appends_and_drops_the_lines_that_are_done_again(
    make_model: Callable[..., Any], make_trainer: Any
):
    saving = {"save_strategy": "steps", "save_steps": 2}
    first = logging_trainer(make_trainer, make_model(), **saving)
    first.add_callback(StopAfter(3))
    first.train()
    before = read_log(make_trainer.output_dir)
    assert [line["current_steps"] for line in before] == [1, 2, 3, 3]

    trainer = logging_trainer(make_trainer, make_model(), **saving)
    trainer.train(resume_from_checkpoint=str(make_trainer.output_dir / "checkpoint-2"))
    after = read_log(make_trainer.output_dir)
    assert after[:2] == before[:2]
    assert [line["current_steps"] for line in after] == [1, 2, 3, 4, 5, 5]
    assert after[2]["total_tokens"] == before[2]["total_tokens"]

    logging_trainer(make_trainer, make_model()).train()
    assert [line["current_steps"] for line in read_log(make_trainer.output_dir)] == [1, 2, 3, 4, 5, 5]


def test_remaining_time_counts_only_the_steps_of_this_session(monkeypatch: Any, tmp_path: Path):
    class Object:
        def __init__(self, **values: Any) -> None:
            self.__dict__.update(values)

    clock = [0.0]
    monkeypatch.setattr("llamafactory.train.callbacks.log.time.monotonic", lambda: clock[0])
    callback = LogCallback()
    args = Object(output_dir=str(tmp_path))
    state = Object(global_step=90, max_steps=100, is_world_process_zero=True, num_input_tokens_seen=0)
    callback.on_train_begin(args, state, None)
    clock[0], state.global_step = 30.0, 93
    callback.on_step_end(args, state, None)
    callback.on_log(args, state, None, logs={"loss": 1.0})
    (line,) = read_log(tmp_path)
    assert (line["elapsed_time"], line["remaining_time"]) == ("0:00:30", "0:01:10")


def test_evaluation_alone_logs_every_fifth_batch(make_model: Callable[..., Any], make_trainer: Any):
    trainer = logging_trainer(make_trainer, make_model(), per_device_eval_batch_size=1)
    trainer.evaluate()
    lines = read_log(make_trainer.output_dir)
    assert [line["current_steps"] for line in lines] == [5, 10, 12]
    assert [line["percentage"] for line in lines] == [41.67, 83.33, 100.0]
    assert "eval_loss" in lines[-1]


def test_tokens_are_counted_as_transformers_counts_them(make_model: Callable[..., Any], make_trainer: Any):
    trainer = logging_trainer(make_trainer, make_model(), include_num_input_tokens_seen="non_padding")
    trainer.train()
    assert trainer.state.num_input_tokens_seen == trainer.meter.num_tokens == trainer.meter.session_tokens


def test_lines_are_short():
    logs = {"loss": 1.23456, "grad_norm": 0.5, "learning_rate": 4.5e-5, "epoch": 0.25, "train_runtime": 3.0}
    assert log_line(logs, 20, 100) == "step 20/100  loss 1.235  grad 0.5  lr 4.50e-05  epoch 0.25"
    assert log_line({"eval_loss": math.nan}, 0, 0) == "eval_loss nan"


def test_the_bar_prints_the_same_lines(make_model: Callable[..., Any], make_trainer: Any, capsys: Any, caplog: Any):
    make_trainer(make_model(), make_rows(4), disable_tqdm=False).train()
    output = capsys.readouterr()
    assert "step 1/1  loss 6." in output.out + output.err
    assert "{'loss'" not in output.out + output.err
