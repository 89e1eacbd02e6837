"""`data stats` and data_report.json: how much data there is, how it fits into batches, how many steps it makes."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

from ..batch_plan import BatchPlan, BatchSize, batch_size_of
from ..lengths import SequenceLengths, sequence_lengths
from ..loader import DatasetModule
from ..mismatch import MismatchedRows
from ..packing import pack_lengths
from ..report import PreparationReport
from ..streaming import StreamRows


if TYPE_CHECKING:
    from datasets import Dataset

    from ...hparams import DataArguments, TrainingArguments

NUM_BARS = 10


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
    """Rows a device takes at a time, unless max_batch_tokens says how many tokens."""
    max_batch_tokens: int | None
    rows_per_batch: float
    """On average."""
    batch_fill: float | None
    """Share of max_batch_tokens that a batch takes, padding included."""
    gradient_accumulation_steps: int
    num_ranks: int
    steps_per_epoch: int
    num_epochs: float
    num_steps: int
    padding_share: float
    """Share of the places in batches that padding takes."""
    packing: bool
    """Whether the run packs."""
    num_packed_rows: int | None
    """Rows of cutoff_len that best-fit packing makes, whether the run packs or not; null where a stage cannot."""
    packing_efficiency: float | None
    """Share of the places in them that tokens take."""


@dataclass(frozen=True)
class DataFigures:
    """Everything about the data of a run, as data_report.json has it."""

    datasets: tuple[DatasetFigures, ...]
    together: tuple[DatasetFigures, ...]
    """One for each side with several datasets."""
    run: RunFigures | None
    """None when nothing is learned, or when rows are streamed and nobody knows how long they are."""

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)


def data_figures(
    module: DatasetModule,
    data_args: "DataArguments",
    training_args: "TrainingArguments",
    num_ranks: int = 1,
    *,
    stage: str = "sft",
    size: BatchSize | None = None,
) -> DataFigures:
    """Return the figures of prepared rows."""
    reports = module.get("reports") or []
    num_train = len(data_args.dataset or ())
    sides = {"train": reports[:num_train], "eval": reports[num_train:]}
    datasets = [dataset_figures(report, side) for side, listed in sides.items() for report in listed]
    together = [dataset_figures(join(listed), side) for side, listed in sides.items() if len(listed) > 1]
    rows = module["train_dataset"]
    is_streamed = rows is None or isinstance(rows, StreamRows)
    run = None if is_streamed else run_figures(cast(Any, rows), data_args, training_args, num_ranks, stage, size)
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
    rows: "Dataset",
    data_args: "DataArguments",
    training_args: "TrainingArguments",
    num_ranks: int = 1,
    stage: str = "sft",
    size: BatchSize | None = None,
) -> RunFigures:
    """Return how the rows make batches and steps; `size` is known where the collator is."""
    size = size or batch_size_of(data_args, training_args, pads=data_args.padding_free is False)
    lengths = sequence_lengths(rows)
    packed = packed_lengths(lengths, data_args, training_args.seed, stage)
    is_packed = packed is not None and bool(data_args.packing)
    arranged = lengths_in_batches(rows, lengths, packed if is_packed else None, data_args, stage)
    strategy = training_args.train_sampling_strategy
    order = "random" if strategy == "batch_rebalance" else strategy
    plan = BatchPlan(arranged, size, order, training_args.seed, num_ranks)

    steps_per_epoch = max(math.ceil(plan.num_batches / training_args.gradient_accumulation_steps), 1)
    num_epochs, num_steps = training_args.num_train_epochs, training_args.max_steps
    if num_steps > 0:
        num_epochs = round(num_steps / steps_per_epoch, 4)
    else:
        num_steps = math.ceil(num_epochs * steps_per_epoch)
    batches = [batch for batch in plan.epoch(0) if len(batch)]
    places = sum(map(plan.tokens_of, batches))
    tokens = sum(int(arranged.total[batch].sum()) for batch in batches)
    return RunFigures(
        num_rows=len(lengths),
        num_tokens=int(arranged.total.sum()),
        batch_size=size.num_rows,
        max_batch_tokens=size.max_tokens,
        rows_per_batch=round(sum(map(len, batches)) / max(len(batches), 1), 2),
        batch_fill=round(places / (len(batches) * size.max_tokens), 4) if size.max_tokens and batches else None,
        gradient_accumulation_steps=training_args.gradient_accumulation_steps,
        num_ranks=num_ranks,
        steps_per_epoch=steps_per_epoch,
        num_epochs=num_epochs,
        num_steps=num_steps,
        padding_share=round(1 - tokens / max(places, 1), 4),
        packing=is_packed,
        num_packed_rows=None if packed is None else len(packed),
        packing_efficiency=None
        if packed is None
        else round(int(packed.total.sum()) / max(len(packed) * data_args.cutoff_len, 1), 4),
    )


def packed_lengths(
    lengths: SequenceLengths, data_args: "DataArguments", seed: int, stage: str
) -> SequenceLengths | None:
    """Return the lengths of packed rows, or of blocks in pre-training; None where a stage does not pack."""
    import numpy as np

    capacity = data_args.cutoff_len
    if stage == "pt":
        num_full, rest = divmod(int(lengths.total.sum()), capacity)
        return SequenceLengths({"": np.asarray([capacity] * num_full + [rest] * bool(rest), dtype=np.int64)})
    if stage != "sft" or (len(lengths) and lengths.total.max() > capacity):
        return None
    rows = pack_lengths(lengths.total, capacity, seed)
    return SequenceLengths({"": np.asarray([lengths.total[row].sum() for row in rows], dtype=np.int64)})


def lengths_in_batches(
    rows: "Dataset",
    lengths: SequenceLengths,
    packed: SequenceLengths | None,
    data_args: "DataArguments",
    stage: str,
) -> SequenceLengths:
    """Return the lengths of what batches are drawn from."""
    if packed is not None:
        return packed
    return MismatchedRows(rows, data_args.cutoff_len).sequence_lengths() if stage == "kto" else lengths
