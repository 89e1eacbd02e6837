"""Several datasets become one: more of this, less of that, end to end or alternating."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ..extras.errors import UserError
from .store import HASH


if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from numpy.typing import NDArray

    from ..hparams.data_args import MixStrategy

STOPS: dict[str, Literal["first_exhausted", "all_exhausted", "all_exhausted_without_replacement"]] = {
    "interleave_under": "first_exhausted",
    "interleave_over": "all_exhausted",
    "interleave_once": "all_exhausted_without_replacement",
}


@dataclass(frozen=True)
class Part:
    """The rows of one dataset, and how many of them a run takes."""

    name: str
    rows: "Dataset"
    num_samples: int | None = None
    weight: float | None = None


def mix(
    parts: Sequence[Part], strategy: "MixStrategy", chances: Sequence[float] | None, seed: int
) -> "Dataset | None":
    """Mix the parts; None when there are none. `chances` go with the parts one by one.

    End to end, a weight of 2.5 takes every row twice and half of them a third time. Alternating, the weights are the
    chances of the datasets when no chances are given.
    """
    from datasets import concatenate_datasets, interleave_datasets

    shares, is_drawn = share_out([part.weight for part in parts], strategy, chances)
    used = [(part, share) for part, share in zip(parts, shares, strict=True) if share > 0 and len(part.rows)]
    if strategy not in STOPS:
        rows = [resample(part.rows, amount_of(part), seed) for part, _ in used]
        return concatenate_datasets(rows) if rows else None
    rows = [resample(part.rows, part.num_samples, seed) for part, _ in used]
    if len(rows) < 2:
        return rows[0] if rows else None
    total = sum(share for _, share in used)
    probabilities = [share / total for _, share in used] if is_drawn else None
    return interleave_datasets(rows, probabilities, seed=seed, stopping_strategy=STOPS[strategy])


def share_out(
    weights: Sequence[float | None], strategy: "MixStrategy", chances: Sequence[float] | None
) -> tuple[list[float], bool]:
    """Return the share of each dataset, and whether rows are drawn by it rather than in turn."""
    if chances is None and strategy in STOPS and any(weight is not None for weight in weights):
        chances = [1.0 if weight is None else weight for weight in weights]
    if chances is not None and len(chances) != len(weights):
        raise UserError(f"interleave_probs has {len(chances)} values for {len(weights)} datasets; give one for each.")
    return [1.0] * len(weights) if chances is None else list(chances), chances is not None


def amount_of(part: Part) -> int | None:
    """Return how many rows a part gives when parts stand end to end; None for each row once."""
    return part.num_samples if part.weight is None else max(1, round(part.weight * len(part.rows)))


def resample(rows: "Dataset", num_samples: int | None, seed: int) -> "Dataset":
    """Draw exactly num_samples rows; each comes up again only when all have come up."""
    return rows if num_samples is None else rows.select(draw_rounds(len(rows), num_samples, seed))


def draw_rounds(num_rows: int, num_samples: int, seed: int) -> "NDArray[np.int64]":
    """Return num_samples row numbers: rounds over all rows, the last one over some drawn at random; each in order."""
    import numpy as np

    num_whole, rest = divmod(num_samples, num_rows)
    last = np.sort(np.random.default_rng(seed).permutation(num_rows)[:rest])
    return np.concatenate([np.tile(np.arange(num_rows), num_whole), last])


def end_to_end(parts: Sequence[Part], seed: int) -> "Dataset | None":
    """Put the rows of all parts together as they are evaluated: num_samples counts, weights do not."""
    return mix([replace(part, weight=None) for part in parts], "concat", None, seed)


def hold_out(parts: Sequence[Part], val_size: float) -> tuple[list[Part], "Dataset"]:
    """Take validation rows out of the parts, before any row is repeated; returns what is left, and them."""
    from datasets import concatenate_datasets

    held = split_dataset(concatenate_datasets([part.rows for part in parts]), val_size)[1]
    return [replace(part, rows=select_rows(part.rows, held, are_in=False)) for part in parts], held


def split_dataset(dataset: "Dataset", val_size: float) -> tuple["Dataset", "Dataset"]:
    """Split rows into (train, validation) by the hash of their content; equal rows stay on one side.

    Which rows are held out depends on nothing but the rows, so it is the same on every rank and after a resume.
    """
    import numpy as np

    hashes = np.asarray(dataset.with_format("numpy")[HASH])
    is_held = np.isin(hashes, choose_held(hashes, val_size))
    return dataset.select(np.flatnonzero(~is_held)), dataset.select(np.flatnonzero(is_held))


def choose_held(hashes: "NDArray[np.int64]", val_size: float) -> "NDArray[np.int64]":
    """Return the hashes of the rows to hold out: the smallest ones, as many as make up val_size."""
    import numpy as np

    wanted = int(val_size) if val_size >= 1 else max(1, round(len(hashes) * val_size))
    unique, counts = np.unique(hashes, return_counts=True)
    num_groups = int(np.searchsorted(np.cumsum(counts), wanted)) + 1
    if num_groups >= len(unique):
        raise UserError(f"val_size {val_size:g} leaves nothing to train on: there are {len(hashes)} rows; lower it.")
    return unique[:num_groups]


def select_rows(dataset: "Dataset", others: "Dataset", *, are_in: bool) -> "Dataset":
    """Return the rows of dataset whose content stands in others too, or those whose content does not."""
    import numpy as np

    hashes, known = (np.asarray(rows.with_format("numpy")[HASH]) for rows in (dataset, others))
    return dataset.select(np.flatnonzero(np.isin(hashes, known) == are_in))
