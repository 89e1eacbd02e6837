"""A stream is opened: layouts found, rows counted where that is cheap, and rows to measure on held out."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING

from ..extras.errors import UserError
from ..extras.logging import get_logger
from .conversation import FieldError, RowDropped
from .converter import get_dataset_converter
from .fingerprint import digest
from .hubs import Access
from .mixing import STOPS, Part, choose_held, share_out
from .parser import DatasetAttr, get_dataset_list
from .preparation import RowMaker, hash_of, settle_layout
from .processor import DatasetProcessor
from .report import PreparationReport
from .sources import Row, open_source
from .stream_order import Mixture, Repeated, StreamPart
from .streaming import RowEncoder, StreamRows


if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]

logger = get_logger(__name__)


@dataclass(frozen=True)
class OpenedStream:
    """A stream, and what was held out of it."""

    rows: StreamRows
    held: list[Part]
    reports: list[PreparationReport]
    """One for each dataset, in the order in which they were named."""


@dataclass(frozen=True)
class PickedSource:
    """Some rows of a source, as a source of its own."""

    part: StreamPart
    numbers: "Numbers"
    hashes: "Numbers" = field(repr=False)

    @property
    def name(self) -> str:
        """The name of the dataset."""
        return self.part.name

    @property
    def digest(self) -> str:
        """Hash of the rows' content."""
        return digest(["picked", self.hashes.tolist()])

    @property
    def num_rows(self) -> int:
        """How many were picked."""
        return len(self.numbers)

    def read(self, start: int = 0) -> Iterator[Row]:
        """Yield the picked rows."""
        wanted = iter(self.numbers[start:].tolist())
        next_wanted = next(wanted, -1)
        for number, row in self.part.numbered():
            if next_wanted < 0:
                return
            if number == next_wanted:
                yield row
                next_wanted = next(wanted, -1)


def open_stream(
    maker: RowMaker,
    kind: type[DatasetProcessor],
    measure: type[DatasetProcessor],
    *,
    seed: int,
    can_be_endless: bool,
    holds_out: bool,
) -> OpenedStream:
    """Open the datasets to learn; a stream of unknown length is refused unless the run knows where to end."""
    data_args = maker.data_args
    attrs = get_dataset_list(data_args.dataset, data_args.dataset_dir)
    parts = [open_part(maker, attr, kind) for attr in attrs]
    if not can_be_endless:
        check_counted(parts)
    say_counts(parts, data_args.buffer_size)

    held: list[Part] = []
    hashes: frozenset[int] = frozenset()
    if holds_out:
        picked = pick_held(parts, data_args.val_size, data_args.buffer_size)
        hashes = frozenset(number for source in picked for number in source.hashes.tolist())
        held = [
            Part(source.name, maker.make_from(source.part.attr, source, measure))
            for source in picked
            if len(source.numbers)
        ]
        parts = [replace(part, held=source.numbers) for part, source in zip(parts, picked, strict=True)]

    reports = [PreparationReport(part.name, data_args.cutoff_len) for part in parts]
    shares, is_drawn = share_out([attr.weight for attr in attrs], data_args.mix_strategy, data_args.interleave_probs)
    used = [number for number, part in enumerate(parts) if shares[number] > 0 and part.num_rows != 0]
    total = sum(shares[number] for number in used)
    is_counted = all(part.num_rows is not None for part in parts)
    mixture = Mixture(
        parts=tuple(repeat(parts[number], attrs[number], data_args.mix_strategy, seed) for number in used),
        strategy=data_args.mix_strategy,
        chances=tuple(shares[number] / total for number in used) if is_drawn else None,
        seed=seed,
    )
    encoder = RowEncoder(
        attrs=tuple(parts[number].attr for number in used),
        processor=kind(maker.template, maker.tokenizer, data_args),
        data_args=data_args,
        held=frozenset() if is_counted else hashes,  # counted rows have all been seen
    )
    used_reports = tuple(reports[number] for number in used)
    rows = StreamRows(mixture, encoder, data_args.buffer_size, data_args.cutoff_len, used_reports)
    return OpenedStream(rows, held, reports)


def open_part(maker: RowMaker, attr: DatasetAttr, kind: type[DatasetProcessor]) -> StreamPart:
    """Open one dataset and look at its first row."""
    source = open_source(attr, Access.of(maker.model_args), streaming=True)
    layout = settle_layout(attr, next(source.read(), None), kind.learns)
    return StreamPart(str(attr), layout, source, maker.data_args.max_samples)


def repeat(part: StreamPart, attr: DatasetAttr, strategy: str, seed: int) -> Repeated:
    """Say how many rows of a dataset make an epoch."""
    amount = attr.num_samples
    if strategy not in STOPS and attr.weight is not None:
        if part.num_rows is None:
            raise UserError(
                f"The dataset {part.name} has a weight, which counts its rows, but they cannot be counted before they "
                "are read; give it num_samples."
            )
        amount = max(1, round(attr.weight * part.num_rows))
    return Repeated(part, amount, seed)


def check_counted(parts: list[StreamPart]) -> None:
    """Refuse rows that nobody has counted."""
    names = [part.name for part in parts if part.num_rows is None]
    if names:
        raise UserError(
            f"streaming: true needs max_steps here, because the rows of {', '.join(names)} cannot be counted before "
            "they are read; set it."
        )


def say_counts(parts: list[StreamPart], buffer_size: int) -> None:
    """Print how many rows will come."""
    counts = ", ".join(
        f"{part.name}: {'rows not counted' if part.num_rows is None else f'{part.num_rows} rows'}" for part in parts
    )
    logger.info(f"Streaming {counts}; {buffer_size} at a time are shuffled.")


def pick_held(parts: list[StreamPart], val_size: float, buffer_size: int) -> list[PickedSource]:
    """Choose the rows to hold out by their hash, after one look at all rows.

    Of rows that cannot be counted only the first buffer_size are looked at, which is enough for a number of rows.
    """
    import numpy as np

    unknown = [part.name for part in parts if part.num_rows is None]
    if unknown and val_size < 1:
        raise UserError(
            f"val_size {val_size:g} is a share of all rows, but those of {', '.join(unknown)} cannot be counted "
            "before they are read; hold out a whole number of rows."
        )
    logger.info("Looking at the rows once to hold out those of val_size ...")
    looked = [hashes_of(part, None if part.num_rows is not None else buffer_size) for part in parts]
    held = choose_held(np.concatenate([hashes for _, hashes in looked]), val_size)
    picked: list[PickedSource] = []
    for part, (numbers, hashes) in zip(parts, looked, strict=True):
        is_held = np.isin(hashes, held)
        picked.append(PickedSource(part, numbers[is_held], hashes[is_held]))
    return picked


def hashes_of(part: StreamPart, limit: int | None) -> tuple["Numbers", "Numbers"]:
    """Return the numbers and the hashes of the rows of a dataset that can be read as conversations."""
    import numpy as np

    convert = get_dataset_converter(part.attr.formatting, part.attr)
    numbers: list[Numbers] = []
    hashes: list[Numbers] = []
    rows = islice(part.numbered(), limit)
    while batch := list(islice(rows, 10_000)):
        pairs: list[tuple[int, int]] = []
        for number, row in batch:
            try:
                pairs.append((number, hash_of(convert(row.values))))
            except RowDropped:
                continue
            except FieldError as error:
                raise UserError(f"{row.where}: {error}.") from None
        numbers.append(np.asarray([number for number, _ in pairs], np.int64))
        hashes.append(np.asarray([number for _, number in pairs], np.int64))
    return np.concatenate(numbers), np.concatenate(hashes)


def first_row(stream: StreamRows, num_tried: int = 16) -> dict[str, object] | None:
    """Return one of the first rows as the model will see it; None when none of them can be used."""
    outcomes = stream.encoder.encode(list(islice(stream.mixture.read(), num_tried)))
    return next((outcome.row for outcome in outcomes if outcome.row is not None), None)
