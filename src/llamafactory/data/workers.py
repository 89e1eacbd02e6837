"""Batches through a processor, in order: in this process, or in several when there is much to do.

The fast tokenizer uses all cores by itself, so processes pay only for large data: each has to import the libraries
and gets its own copy of the tokenizer.
"""

import multiprocessing
from collections.abc import Iterator, Sequence
from itertools import chain
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from ..extras.env import set_defaults
from ..extras.errors import UserError
from .conversation import Conversation, RowDropped
from .processor import DatasetProcessor, ProcessedRow


Result = list[ProcessedRow | RowDropped]
ROWS_BEFORE_WORKERS = 20_000


def process_batches(
    processor: DatasetProcessor,
    batches: Iterator[Sequence[Conversation]],
    num_workers: int = 1,
    num_rows_before: int = ROWS_BEFORE_WORKERS,
) -> Iterator[Result]:
    """Yield the rows of each batch; workers start once num_rows_before rows have been processed here."""
    num_rows = 0
    for batch in batches:
        if num_workers > 1 and num_rows >= num_rows_before:
            yield from process_in_workers(processor, chain([batch], batches), num_workers)
            return
        num_rows += len(batch)
        yield processor.process(batch)


def process_in_workers(
    processor: DatasetProcessor, batches: Iterator[Sequence[Conversation]], num_workers: int
) -> Iterator[Result]:
    """Deal the batches out in turn; every worker holds one at a time, and results are collected in the same turn."""
    context = multiprocessing.get_context("spawn")  # a fork would copy the tokenizer's locked threads
    workers: list[tuple[BaseProcess, Connection]] = []
    try:
        for batch in batches:
            if len(workers) < num_workers:
                ours, theirs = context.Pipe()
                worker = context.Process(target=work, args=(processor, theirs), daemon=True)
                worker.start()
                theirs.close()
            else:
                worker, ours = workers.pop(0)
                yield receive(worker, ours)
            workers.append((worker, ours))
            send(worker, ours, batch)
        for worker, ours in workers:
            yield receive(worker, ours)
    finally:
        for worker, ours in workers:
            ours.close()
            worker.terminate()
            worker.join()


def work(processor: DatasetProcessor, connection: Connection) -> None:
    """Process batches until the other end hangs up."""
    set_defaults({"TOKENIZERS_PARALLELISM": "false"})  # the processes share the cores already
    while True:
        try:
            batch = connection.recv()
        except EOFError:
            return
        connection.send(processor.process(batch))


def send(worker: BaseProcess, connection: Connection, batch: Sequence[Conversation]) -> None:
    """Give a worker its next batch."""
    try:
        connection.send(batch)
    except OSError:
        raise died(worker) from None


def receive(worker: BaseProcess, connection: Connection) -> Result:
    """Wait for a worker's rows."""
    try:
        return connection.recv()
    except (EOFError, OSError):
        raise died(worker) from None


def died(worker: BaseProcess) -> UserError:
    """Say that a worker is gone, and why as far as its exit code tells."""
    worker.join(timeout=5)
    return UserError(
        f"A process that prepares data ended with exit code {worker.exitcode} (-9: killed, mostly for "
        "lack of memory); lower preprocessing_num_workers or preprocessing_batch_size."
    )
