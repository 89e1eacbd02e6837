"""`data stats` and data_report.json: how much data there is, how it fits into batches, how many steps it makes."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..loader import DatasetModule
from ..packing import document_lengths, pack_lengths
from ..report import PreparationReport


if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

    from ...hparams import DataArguments, TrainingArguments

NUM_BARS = 10
LENGTH_GROUP = 50  # batches that group_by_length sorts together, as transformers does


@dataclass(frozen=True)
class Lengths:
    """Tokens a row: the length that so many percent of the rows do not exceed."""

    p50: int
    p95: int
    p99: int
    max: int


@dataclass(frozen=True)
class Bar:
    """Rows of start to end tokens (both included)."""

    start: int
    end: int
    num_rows: int


@dataclass(frozen=True, kw_only=True)
class DatasetFigures:
    """One dataset, or all of one side together."""

    name: str
    side: str
    num_read: int
    num_kept: int
    num_truncated: int
    num_dropped: int
    dropped: dict[str, int]
    """Reason -> rows."""
    first_dropped: dict[str, str]
    """Reason -> place of the first row."""
    num_tokens: int
    num_supervised: int
    supervised_share: float
    lengths: Lengths
    histogram: tuple[Bar, ...]


@dataclass(frozen=True, kw_only=True)
class RunFigures:
    """What the rows to learn, mixed and split as the run will, make of a run."""

    num_rows: int
    num_tokens: int
    """In one epoch, without padding."""
    batch_size: int
    """Rows a device takes at a time."""
    gradient_accumulation_steps: int
    num_ranks: int
    steps_per_epoch: int
    num_epochs: float
    num_steps: int
    padding_share: float
    """Share of the places in batches that padding takes."""
    packing: bool
    """Whether the run packs."""
    num_packed_rows: int
    """Rows of cutoff_len that best-fit packing makes, whether the run packs or not."""
    packing_efficiency: float
    """Share of the places in them that tokens take."""


@dataclass(frozen=True)
class DataFigures:
    """Everything about the data of a run, as data_report.json has it."""

    datasets: tuple[DatasetFigures, ...]
    together: tuple[DatasetFigures, ...]
    """One for each side with several datasets."""
    run: RunFigures | None
    """None when nothing is learned, or when rows are streamed and nobody knows how many there are."""

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)


def data_figures(
    module: DatasetModule, data_args: "DataArguments", training_args: "TrainingArguments", num_ranks: int = 1
) -> DataFigures:
    """Return the figures of prepared rows."""
    reports = module.get("reports") or []
    num_train = len(data_args.dataset or ())
    sides = {"train": reports[:num_train], "eval": reports[num_train:]}
    datasets = [dataset_figures(report, side) for side, listed in sides.items() for report in listed]
    together = [dataset_figures(join(listed), side) for side, listed in sides.items() if len(listed) > 1]
    rows: Any = module["train_dataset"]
    run = run_figures(rows, data_args, training_args, num_ranks) if hasattr(rows, "__len__") else None
    return DataFigures(tuple(datasets), tuple(together), run)


def dataset_figures(report: PreparationReport, side: str) -> DatasetFigures:
    """Return the figures of one report."""
    levels = [report.percentile(level) for level in (0.5, 0.95, 0.99, 1)]
    return DatasetFigures(
        name=report.name,
        side=side,
        num_read=report.num_read,
        num_kept=report.num_kept,
        num_truncated=report.num_truncated,
        num_dropped=report.dropped.total(),
        dropped=dict(report.dropped.most_common()),
        first_dropped=dict(report.examples),
        num_tokens=report.num_tokens,
        num_supervised=report.num_supervised,
        supervised_share=round(report.num_supervised / max(report.num_tokens, 1), 4),
        lengths=Lengths(*levels),
        histogram=histogram(report.lengths),
    )


def join(reports: Sequence[PreparationReport]) -> PreparationReport:
    """Add reports up."""
    total = PreparationReport("all", max(report.cutoff_len for report in reports))
    for report in reports:
        total.num_read += report.num_read
        total.num_truncated += report.num_truncated
        total.num_supervised += report.num_supervised
        total.dropped.update(report.dropped)
        for reason, where in report.examples.items():
            total.examples.setdefault(reason, where)
        total.lengths.extend(report.lengths)
    return total


def histogram(lengths: Sequence[int]) -> tuple[Bar, ...]:
    """Count rows in NUM_BARS stretches of equal width."""
    if not lengths:
        return ()
    width = -(-max(lengths) // NUM_BARS)
    counts = Counter((length - 1) // width for length in lengths)
    return tuple(
        Bar(index * width + 1, (index + 1) * width, counts[index]) for index in range(min(counts), max(counts) + 1)
    )


def run_figures(
    rows: "Dataset", data_args: "DataArguments", training_args: "TrainingArguments", num_ranks: int
) -> RunFigures:
    """Return how the rows make batches and steps."""
    import numpy as np

    columns = [column_lengths(rows, name) for name in rows.column_names if name.endswith("input_ids")]
    lengths = np.max(columns, axis=0)  # what a row is padded to
    num_tokens = int(np.sum(columns))
    packed = packed_lengths(lengths, data_args.cutoff_len, training_args.seed)
    in_batches = packed if data_args.packing else lengths
    steps_per_epoch = count_steps(len(in_batches), training_args, num_ranks)
    num_epochs, num_steps = training_args.num_train_epochs, training_args.max_steps
    if num_steps > 0:
        num_epochs = round(num_steps / steps_per_epoch, 4)
    else:
        num_steps = math.ceil(num_epochs * steps_per_epoch)
    return RunFigures(
        num_rows=len(lengths),
        num_tokens=num_tokens,
        batch_size=training_args.per_device_train_batch_size,
        gradient_accumulation_steps=training_args.gradient_accumulation_steps,
        num_ranks=num_ranks,
        steps_per_epoch=steps_per_epoch,
        num_epochs=num_epochs,
        num_steps=num_steps,
        padding_share=0.0 if data_args.padding_free else round(padding_share(in_batches, training_args), 4),
        packing=bool(data_args.packing),
        num_packed_rows=len(packed),
        packing_efficiency=round(int(packed.sum()) / max(len(packed) * data_args.cutoff_len, 1), 4),
    )


def column_lengths(rows: "Dataset", name: str) -> "np.ndarray[Any, Any]":
    """Return the tokens of each row in one column; a pair has two."""
    column = rows.select_columns(name)
    return document_lengths(column if name == "input_ids" else column.rename_column(name, "input_ids"))


def packed_lengths(lengths: "np.ndarray[Any, Any]", capacity: int, seed: int) -> "np.ndarray[Any, Any]":
    """Return the lengths of packed rows; texts that are longer than a row are cut into blocks, end to end."""
    import numpy as np

    if len(lengths) and lengths.max() > capacity:
        num_full, rest = divmod(int(lengths.sum()), capacity)
        return np.asarray([capacity] * num_full + [rest] * bool(rest))
    return np.asarray([lengths[row].sum() for row in pack_lengths(lengths, capacity, seed)])


def count_steps(num_rows: int, training_args: "TrainingArguments", num_ranks: int) -> int:
    """Return the optimizer steps of an epoch."""
    batches = num_rows / (training_args.per_device_train_batch_size * num_ranks)
    num_batches = math.floor(batches) if training_args.dataloader_drop_last else math.ceil(batches)
    return max(math.ceil(num_batches / training_args.gradient_accumulation_steps), 1)


def padding_share(lengths: "np.ndarray[Any, Any]", training_args: "TrainingArguments") -> float:
    """Return the share of padding when batches are drawn as in the first epoch."""
    import numpy as np

    size = training_args.per_device_train_batch_size
    strategy = training_args.train_sampling_strategy
    order = np.arange(len(lengths))
    if strategy != "sequential":
        order = np.random.default_rng(training_args.seed).permutation(len(lengths))
    drawn = lengths[order]
    if strategy == "group_by_length":
        groups = [drawn[start : start + LENGTH_GROUP * size] for start in range(0, len(drawn), LENGTH_GROUP * size)]
        drawn = np.concatenate([np.sort(group)[::-1] for group in groups])
    places = sum(int(batch.max()) * len(batch) for batch in np.array_split(drawn, range(size, len(drawn), size)))
    return 1 - int(lengths.sum()) / max(places, 1)
