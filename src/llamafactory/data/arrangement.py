"""From the rows of a dataset to the rows of batches: packed, cut into blocks, or paired; lazily, over all of them."""

from typing import TYPE_CHECKING, Any

from .blocks import cut_into_blocks
from .mismatch import MismatchedRows
from .packing import pack_dataset
from .streaming import StreamRows


if TYPE_CHECKING:
    from ..hparams import DataArguments


def arrange_rows(rows: Any, kind: str, data_args: "DataArguments", seed: int = 0, *, is_training: bool = True) -> Any:
    """Return what batches are drawn from; `kind` is what get_dataset was asked for. None stays None.

    Rows to measure on are not packed: their loss is the same either way. A stream is arranged as it is read.
    """
    if isinstance(rows, dict):
        return {
            name: arrange_rows(part, kind, data_args, seed=seed, is_training=is_training)
            for name, part in rows.items()
        }
    needs_all = kind == "kto" or (kind in ("pt", "sft") and data_args.packing)
    if rows is None or not needs_all:
        return rows
    if isinstance(rows, StreamRows):
        return rows.arranged("mismatched" if kind == "kto" else "blocks" if kind == "pt" else "packed")
    if kind == "kto":
        return MismatchedRows(rows, data_args.cutoff_len)
    if kind == "pt":
        return cut_into_blocks(rows, data_args.cutoff_len)
    return pack_dataset(rows, data_args.cutoff_len, seed) if is_training else rows
