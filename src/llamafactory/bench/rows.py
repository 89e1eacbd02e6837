"""The rows that the sides of a task train on: chosen so that few steps waste as much on padding as all of the data.

Rows come from a folder with the demo data, or are made up here. Of many shuffles the one is taken whose measured
batches are, in length and in padding, nearest to the mean over the whole data.
"""

import json
import random
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from ..extras.constants import IGNORE_INDEX
from ..extras.errors import UserError
from .job import Job


FILES = {"sft": "alpaca_en_demo.json", "dpo": "dpo_en_demo.json"}
INFO: Mapping[str, dict[str, Any]] = {
    "sft": {"file_name": "rows.json"},
    "dpo": {
        "file_name": "rows.json",
        "formatting": "sharegpt",
        "ranking": True,
        "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
    },
}
DATASET = "rows"
NUM_SHUFFLES = 400
NUM_MADE_UP = 600
WORDS = (
    "the of and to in that is was for on are with as his they be at one have this from had by hot word but what some "
    "we can out other were all there when up use your how said an each she which do their time if will way about many "
    "then them write would like so these her long make thing see him two has look more day could go come did number"
)


def train_config(job: Job) -> dict[str, Any]:
    """Return the configuration that this package trains with; the preparation of the rows takes the same one."""
    return {
        "model_name_or_path": job.model,
        "stage": job.stage,
        "do_train": True,
        "finetuning_type": job.method or "lora",
        "dataset": job.dataset,
        "dataset_dir": job.dataset_dir,
        "cutoff_len": job.cutoff_len,
        "disable_shuffling": True,
        "output_dir": str(Path(job.folder) / "out"),
        "per_device_train_batch_size": job.batch,
        "gradient_accumulation_steps": job.accumulation,
        "max_steps": job.steps,
        **job.settings,
    }


def prepare(job: Job) -> dict[str, Any]:
    """Choose and encode the rows of a task; returns what the command needs to know of them.

    `settings` hold `source`, a folder or "", and `is_packed`. The rows and their ids are written into job.folder.
    """
    source, is_packed = str(job.settings["source"]), bool(job.settings["is_packed"])
    plain = Job(**{**vars(job), "settings": {}, "dataset": DATASET, "dataset_dir": job.folder})
    raw, origin = load_rows(job.stage, Path(source) if source else None)
    _write_rows(Path(job.folder), job.stage, raw)
    lengths = [[len(ids) for ids in sequences(row)] for row in encode(plain)]
    if len(lengths) != len(raw):
        raise UserError(f"{len(raw) - len(lengths)} of {len(raw)} rows of {origin} were dropped; mend the data first.")

    share = mean_padding(lengths, job.batch)
    num_rows = job.batch * job.accumulation * job.steps
    if is_packed:  # as many documents as fill the rows, and some more
        mean = sum(map(sum, lengths)) / len(lengths)
        num_rows = int(num_rows * job.cutoff_len / mean) + 2 * job.batch
    warmup = 0 if is_packed else job.batch * job.accumulation * job.warmup
    order = choose_rows(lengths, job.batch, num_rows, warmup)
    _write_rows(Path(job.folder), job.stage, [raw[index] for index in order])
    rows = encode(plain)
    if is_packed:
        from ..data.packing import PackedRows
        from ..hparams import TrainingArguments

        rows = PackedRows(rows, job.cutoff_len, TrainingArguments(output_dir="unused").seed)
    rows = [dict(rows[index]) for index in range(min(len(rows), job.batch * job.accumulation * job.steps))]
    ids = Path(job.folder) / "ids.json"
    ids.write_text(json.dumps(rows), encoding="utf-8")
    return {"origin": origin, "ids": str(ids), "padding_share_of_all": share, **count_work(rows, job)}


def load_rows(stage: str, folder: Path | None) -> tuple[list[dict[str, Any]], str]:
    """Return raw rows and where they are from."""
    if folder is None:
        return make_up_rows(stage), "made up"
    path = folder / FILES[stage]
    if not path.is_file():
        raise UserError(
            f"--data names {str(folder)!r}, but it holds no {FILES[stage]}; leave it out for made-up rows."
        )
    return json.loads(path.read_text(encoding="utf-8")), path.name


def make_up_rows(stage: str, num_rows: int = NUM_MADE_UP) -> list[dict[str, Any]]:
    """Make rows whose lengths spread like those of instruction data; they mean nothing."""
    draw, words = random.Random(0), WORDS.split()  # noqa: S311

    def text(median: float, spread: float) -> str:
        count = max(int(draw.lognormvariate(0.0, spread) * median), 3)
        return " ".join(draw.choices(words, k=min(count, 600)))

    if stage == "dpo":
        return [
            {
                "conversations": [{"from": "human", "value": text(60, 1.0)}],
                "chosen": {"from": "gpt", "value": text(150, 0.8)},
                "rejected": {"from": "gpt", "value": text(150, 0.8)},
            }
            for _ in range(num_rows)
        ]
    return [{"instruction": text(20, 0.5), "input": "", "output": text(100, 0.8)} for _ in range(num_rows)]


def encode(job: Job) -> Any:
    """Encode the rows as a run of this package would."""
    from ..data.loader import get_dataset
    from ..data.template import get_template_and_fix_tokenizer
    from ..hparams.parser import get_train_args
    from ..model.loader import load_tokenizer

    model_args, data_args, training_args, _, _ = get_train_args(train_config(job))
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    return get_dataset(template, model_args, data_args, training_args, job.stage, **module)["train_dataset"]


def sequences(row: Mapping[str, Any]) -> list[list[int]]:
    """Return the ids of every sequence of a row: one, or those of both answers."""
    return [ids for name, ids in row.items() if name.endswith("input_ids")]


def choose_rows(lengths: Sequence[Sequence[int]], batch: int, num_rows: int, warmup: int = 0) -> list[int]:
    """Return the order of rows whose batches, the first `warmup` rows left out, are most like the mean.

    Rows come again where there are too few.
    """
    mean_length = sum(map(sum, lengths)) / len(lengths)
    share = mean_padding(lengths, batch)

    def distance(order: Sequence[int]) -> float:
        chosen = [lengths[index] for index in order[warmup:]]
        length = sum(map(sum, chosen)) / len(chosen)
        return abs(length / mean_length - 1) + abs(padding_share(chosen, batch) - share)

    orders = (_shuffled(len(lengths), seed, num_rows) for seed in range(NUM_SHUFFLES))
    return min(orders, key=distance)


def mean_padding(lengths: Sequence[Sequence[int]], batch: int) -> float:
    """Return the share of padding in batches of random rows."""
    orders = [_shuffled(len(lengths), seed, len(lengths) // batch * batch or batch) for seed in range(20)]
    return sum(padding_share([lengths[index] for index in order], batch) for order in orders) / len(orders)


def padding_share(lengths: Sequence[Sequence[int]], batch: int) -> float:
    """Return the share of padding when rows are batched in this order, all sequences of a batch in one tensor."""
    tokens = padded = 0
    for start in range(0, len(lengths), batch):
        together = [length for row in lengths[start : start + batch] for length in row]
        tokens += sum(together)
        padded += len(together) * max(together)
    return 1 - tokens / padded


def count_work(rows: Sequence[Mapping[str, Any]], job: Job) -> dict[str, Any]:
    """Count the tokens of every step, and of the measured ones those that are learned and the padding."""
    per_step = job.batch * job.accumulation
    steps = [rows[start : start + per_step] for start in range(0, len(rows), per_step)]
    first = per_step * job.warmup
    measured = [[len(ids) for ids in sequences(row)] for row in rows[first:]]
    return {
        "rows_per_step": per_step,
        "warmup_steps": job.warmup,
        "tokens": [sum(len(ids) for row in step for ids in sequences(row)) for step in steps],
        "supervised": [sum(_num_learned(row) for row in step) for step in steps],
        "padding_share": padding_share(measured, job.batch) if measured else 0.0,
    }


def _num_learned(row: Mapping[str, Any]) -> int:
    """Count the labels that are predicted: the first token of a sequence never is."""
    columns = [labels for name, labels in row.items() if name.endswith("labels")]
    return sum(label != IGNORE_INDEX for labels in columns for label in labels[1:])


def _shuffled(size: int, seed: int, count: int) -> list[int]:
    order = list(range(size))
    random.Random(seed).shuffle(order)  # noqa: S311
    return list(islice(cycle(order), count))


def _write_rows(folder: Path, stage: str, rows: Sequence[Mapping[str, Any]]) -> None:
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps({DATASET: INFO[stage]}), encoding="utf-8")
