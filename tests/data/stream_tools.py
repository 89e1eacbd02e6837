"""Streams driven as the trainer drives them: a loader for each rank, with real worker processes where asked for."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import Seq2SeqTrainingArguments

from llamafactory.data.batch_plan import BatchSize
from llamafactory.data.streaming import StreamRows
from llamafactory.train.batches import FILLER, make_plan, train_loader
from llamafactory.train.stream_batches import stream_loader


Ids = tuple[int, ...]


def keep_rows(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A collator that leaves rows as they are."""
    return {"rows": rows}


def arguments(folder: Path, **changes: Any) -> Any:
    settings = {"output_dir": str(folder / "out"), "use_cpu": True, "report_to": "none", "seed": 42} | changes
    return Seq2SeqTrainingArguments(**settings)


def stream_batches(
    stream: StreamRows, args: Any, num_ranks: int = 1, epoch: int = 0, batch_size: int = 2
) -> list[list[dict[str, Any]]]:
    """The batches of each rank in an epoch, with fillers and counts."""
    batches: list[list[dict[str, Any]]] = []
    for rank in range(num_ranks):
        loader = stream_loader(stream, keep_rows, args, (rank, num_ranks), batch_size)
        loader.set_epoch(epoch)
        batches.append(list(loader))
    return batches


def in_order(batches: Iterable[Iterable[dict[str, Any]]]) -> list[Ids]:
    """The rows of all ranks in the order in which they are trained on; fillers are no rows."""
    together = zip(*batches, strict=True)
    return [
        tuple(row["input_ids"])
        for step in together
        for batch in step
        if not batch.get(FILLER)
        for row in batch["rows"]
    ]


def stream_order(stream: StreamRows, args: Any, num_ranks: int = 1, epoch: int = 0, batch_size: int = 2) -> list[Ids]:
    return in_order(stream_batches(stream, args, num_ranks, epoch, batch_size))


def map_order(rows: Any, args: Any, num_ranks: int = 1, epoch: int = 0, batch_size: int = 2) -> list[Ids]:
    """The same for prepared rows."""
    plan = make_plan(rows, BatchSize(batch_size, drops_rest=args.dataloader_drop_last), args, num_ranks)
    batches: list[list[dict[str, Any]]] = []
    for rank in range(num_ranks):
        loader = train_loader(rows, plan, keep_rows, args, rank)
        loader.set_epoch(epoch)
        batches.append(list(loader))
    return in_order(batches)
