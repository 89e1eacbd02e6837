"""Batches through a processor, in order: in this process, or in several when there is much to do.

The fast tokenizer uses all cores by itself, and threads keep it busy while rows are rendered, so processes pay only
for large data on many cores: each has to import the libraries and gets its own copy of the tokenizer.
"""

import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
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
    num_threads: int = 2,
) -> Iterator[Result]:
    """Yield the rows of each batch; workers start once num_rows_before rows have been processed here."""
    head = take_rows(batches, num_rows_before) if num_workers > 1 else batches
    yield from process_in_threads(processor, head, num_threads)
    yield from process_in_workers(processor, batches, num_workers)


def take_rows(batches: Iterator[Sequence[Conversation]], num_rows: int) -> Iterator[Sequence[Conversation]]:
    """Yield batches until they hold num_rows rows; the others stay in `batches`."""
    while num_rows > 0 and (batch := next(batches, None)) is not None:
        num_rows -= len(batch)
        yield batch


def process_in_threads(
    processor: DatasetProcessor, batches: Iterator[Sequence[Conversation]], num_threads: int
) -> Iterator[Result]:
    """Process batches while others are read and written: encoding lets go of the interpreter, so no core is idle."""
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="preparation")
    pending: deque[Future[Result]] = deque()
    try:
        for batch in batches:
            pending.append(pool.submit(processor.process, batch))
            if len(pending) > num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def process_in_workers(
    processor: DatasetProcessor, batches: Iterator[Sequence[Conversation]], num_workers: int
) -> Iterator[Result]:
    """Deal the batches out in turn; every worker holds one at a time, and results are collected in the same turn."""
    context = multiprocessing.get_context("spawn")  # a fork would copy the tokenizer's locked threads
    workers: deque[Worker] = deque()
    try:
        for batch in batches:
            if len(workers) < num_workers:
                ours, theirs = context.Pipe()
                process = context.Process(target=work, args=(processor, theirs), daemon=True)
                process.start()
                theirs.close()
                worker = Worker(process, ours)
            else:
                worker = workers.popleft()
                yield worker.receive()
            workers.append(worker)
            worker.send(batch)
        for worker in workers:
            yield worker.receive()
    finally:
        for worker in workers:
            worker.connection.close()
            worker.process.terminate()
            worker.process.join()


def work(processor: DatasetProcessor, connection: Connection) -> None:
    """Process batches until the other end hangs up; what is wrong with the user's data or setting is sent back."""
    set_defaults({"TOKENIZERS_PARALLELISM": "false"})  # the processes share the cores already
    while True:
        try:
            batch = connection.recv()
        except EOFError:
            return
        try:
            connection.send(processor.process(batch))
        except UserError as error:
            connection.send(str(error))


@dataclass(frozen=True)
class Worker:
    """A process and the line to it."""

    process: BaseProcess
    connection: Connection

    def send(self, batch: Sequence[Conversation]) -> None:
        """Give the worker its next batch."""
        try:
            self.connection.send(batch)
        except OSError:
            raise died(self.process) from None

    def receive(self) -> Result:
        """Wait for the worker's rows."""
        try:
            result: Result | str = self.connection.recv()
        except (EOFError, OSError):
            raise died(self.process) from None
        if isinstance(result, str):
            raise UserError(result)
        return result


def died(process: BaseProcess) -> "WorkerDiedError":
    """Wait for the exit code of a worker that hung up."""
    process.join(timeout=5)
    return WorkerDiedError(process.exitcode)


class WorkerDiedError(UserError):
    """A worker is gone; the exit code tells why, as far as anything does."""

    def __init__(self, exit_code: int | None, rows: str = "") -> None:
        is_killed = exit_code is not None and exit_code < 0
        cause = "killed, mostly for lack of memory" if is_killed else "its own error stands above"
        super().__init__(
            f"A process that prepares data ended with exit code {exit_code} ({cause}){rows}; "
            "lower preprocessing_num_workers or preprocessing_batch_size."
        )
        self.worker_code = exit_code  # `exit_code` is how the whole command ends
