"""The command `data stats`: its figures equal a plain count."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inspection_tools import GOOD, Run, alpaca

from llamafactory.data import get_dataset
from llamafactory.data.inspection.bench import load_bench
from llamafactory.data.inspection.check import check_data
from llamafactory.data.inspection.figures import data_figures, packed_lengths, run_figures
from llamafactory.data.inspection.preview import preview_data
from llamafactory.data.lengths import SequenceLengths
from llamafactory.hparams import DataArguments, TrainingArguments
from llamafactory.hparams.parser import load_run_config


def test_figures_equal_a_plain_count(data: Run, write_rows: Any, load: Any) -> None:
    rows = [alpaca(f"Say {index}.", "one two three " * (index % 7 + 1)) for index in range(30)]
    train, held_out = write_rows("a.json", [*rows, alpaca("x", "")]), write_rows("b.json", GOOD)
    options = {"cutoff_len": 40, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    result = data(
        "stats", "--json", dataset=train, eval_dataset=held_out, num_train_epochs=2.5, padding_free=False, **options
    )
    expected = load([train], cutoff_len=40)["train_dataset"]
    lengths = sorted(len(ids) for ids in expected["input_ids"])
    learned = sum(label != -100 for labels in expected["labels"] for label in labels)

    own, other = result.json["datasets"]
    assert (own["side"], other["side"]) == ("train", "eval")
    assert (own["num_read"], own["num_kept"], own["num_dropped"]) == (31, 30, 1)
    assert own["dropped"] == {"no answer at the end": 1}
    whole = load([train], cutoff_len=1000)["train_dataset"]
    assert own["num_truncated"] == sum(len(ids) > 40 for ids in whole["input_ids"]) > 0
    assert (own["num_tokens"], own["num_supervised"]) == (sum(lengths), learned)
    assert own["lengths"] == {"p50": lengths[15], "p95": lengths[28], "p99": lengths[29], "max": 40}
    assert sum(bar["num_rows"] for bar in own["histogram"]) == 30
    run = result.json["run"]
    assert (run["num_rows"], run["num_tokens"]) == (30, sum(lengths))
    assert (run["steps_per_epoch"], run["num_steps"]) == (4, 10)
    assert 0 < run["padding_share"] < 1
    assert result.code == 0


def test_a_run_that_packs_steps_over_packed_rows(load: Any, write_rows: Any) -> None:
    rows = [alpaca(f"Say {index}.", "one two three " * (index % 7 + 1)) for index in range(40)]
    dataset = load([write_rows("a.json", rows)], cutoff_len=128)["train_dataset"]
    training_args = TrainingArguments(output_dir="x", per_device_train_batch_size=1, num_train_epochs=2)
    run = run_figures(dataset, DataArguments(cutoff_len=128, packing=True), training_args, num_ranks=1)
    assert run.num_rows == 40
    assert run.steps_per_epoch == run.num_packed_rows < 20
    assert run.num_steps == 2 * run.num_packed_rows
    assert run.packing_efficiency == pytest.approx(run.num_tokens / (run.num_packed_rows * 128), abs=1e-4)
    assert run.packing_efficiency > 0.9
    assert run_figures(dataset, DataArguments(cutoff_len=128), training_args, num_ranks=4).steps_per_epoch == 10


@pytest.mark.parametrize(
    ("stage", "lengths", "expected"),
    [
        ("pt", [25, 3], [10, 10, 8]),
        ("pt", [7, 3, 4], [10, 4]),
        ("sft", [7, 3, 4], [10, 4]),
        ("sft", [7, 4, 4], [7, 8]),
    ],
)
def test_packing_is_counted_as_the_stage_packs(stage: str, lengths: list[int], expected: list[int]) -> None:
    packed = packed_lengths(SequenceLengths({"": np.array(lengths)}), DataArguments(cutoff_len=10), 0, stage)
    assert packed is not None
    assert packed.total.tolist() == expected


def test_pairs_and_marks_are_not_packed() -> None:
    pairs = SequenceLengths({"chosen_": np.array([3, 4]), "rejected_": np.array([5, 2])})
    assert packed_lengths(pairs, DataArguments(cutoff_len=10), 0, "dpo") is None


def test_pairs_are_shown_and_counted_with_both_answers(
    load: Any, write_rows: Any, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    rows = [{"instruction": "Say one.", "input": "", "chosen": "one", "rejected": "two three"}]
    write_rows("a.json", rows)
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    write_rows("dataset_info.json", {"pairs": {"file_name": "a.json", "ranking": True, "columns": columns}})
    options = {"model_name_or_path": tiny_llama_dir, "dataset": "pairs", "dataset_dir": tmp_path, "output_dir": "x"}
    config = load_run_config({**{key: str(value) for key, value in options.items()}, "template": "chatml"})
    bench = replace(load_bench(config), stage="dpo")
    (row,) = preview_data(bench, 1, 0)
    assert [segment.text for segment in row.segments if segment.is_learned] == ["one<|im_end|>"]
    assert row.others["rejected"].endswith("two three<|im_end|>\n") or row.others["rejected"].endswith("<|im_end|>")
    assert check_data(bench).findings == ()
    module = get_dataset(
        bench.template,
        bench.model_args,
        bench.data_args,
        bench.training_args,
        "dpo",
        tokenizer=bench.tokenizer,
    )
    run = data_figures(module, bench.data_args, bench.training_args, stage="dpo").run
    assert run is not None
    assert run.num_tokens > run.num_rows * len(row.input_ids)


def test_padding_is_what_batches_of_the_run_have() -> None:
    rows: Any = [{"input_ids": [7] * length} for length in (1, 3, 5, 5, 2)]
    data_args = DataArguments(padding_free=False)
    arguments = TrainingArguments(output_dir="x", per_device_train_batch_size=2, seed=1)
    sequential = replace(arguments, train_sampling_strategy="sequential")
    assert run_figures(rows, data_args, sequential).padding_share == pytest.approx(1 - 16 / (6 + 10 + 2), abs=1e-4)
    grouped = replace(arguments, train_sampling_strategy="group_by_length")
    assert run_figures(rows, data_args, grouped).padding_share == pytest.approx(1 - 16 / (10 + 6 + 1), abs=1e-4)


def test_token_budgets_are_counted_in_steps_and_filling() -> None:
    rows: Any = [{"input_ids": [7] * length} for length in (4, 4, 2, 6, 3)]
    arguments = TrainingArguments(output_dir="x", train_sampling_strategy="sequential", num_train_epochs=2)
    run = run_figures(rows, DataArguments(max_batch_tokens=10, padding_free=True), arguments)
    assert (run.steps_per_epoch, run.num_steps, run.rows_per_batch) == (2, 4, 2.5)  # 4 4 2, 6 3
    assert run.batch_fill == pytest.approx(19 / 20)
    assert run.padding_share == 0
    padded = run_figures(rows, DataArguments(max_batch_tokens=10, padding_free=False), arguments)
    assert padded.steps_per_epoch == 4  # 4 4, 2, 6, 3 (2 and 6 take 12 places)
    assert padded.padding_share == 0


def test_stats_are_readable(data: Run, write_rows: Any) -> None:
    result = data("stats", dataset=[write_rows("a.json", GOOD), write_rows("b.json", GOOD[:2])], max_steps=7)
    assert "7 in all (7 epochs; 8 rows x 1 accumulated x 1 rank)" in result.out
    assert "\n  all " in result.out
    assert "packing" in result.out
