"""From the name of a dataset to its encoded rows on disk, one dataset at a time."""

import gc
import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from ..extras.env import read_env
from ..extras.errors import UserError
from ..extras.logging import get_logger
from .conversation import Conversation, FieldError, RowDropped, RowOverlong
from .converter import check_columns, detect_layout, get_dataset_converter
from .fingerprint import code_digest, digest, options_of, tokenizer_digest
from .hubs import Access
from .mixing import Part
from .parser import DatasetAttr, get_dataset_list
from .processor import DatasetProcessor, Learns, ProcessedRow
from .progress import counted
from .rendering import Template
from .report import PreparationReport
from .sources import Row, Source, open_source
from .store import HashedRow, prepared
from .workers import WorkerDiedError, process_batches


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ..hparams import DataArguments, ModelArguments

logger = get_logger(__name__)


@dataclass(frozen=True)
class RowMaker:
    """Makes rows with one template, one tokenizer and one set of arguments."""

    template: Template
    tokenizer: "PreTrainedTokenizerBase"
    model_args: "ModelArguments"
    data_args: "DataArguments"
    reports: list[PreparationReport] = field(default_factory=list)
    """One for each dataset that was made, in that order."""

    @cached_property
    def setting(self) -> dict[str, Any]:
        """What all rows depend on, besides their content."""
        return {
            "template": repr(self.template),
            "tokenizer": tokenizer_digest(self.tokenizer),
            "options": digest(options_of(self.data_args)),
            "code": code_digest(),
        }

    def make_all(
        self, names: Iterable[str] | None, kind: type[DatasetProcessor], *, num_samples: bool = True
    ) -> list[Part]:
        """Return the rows of each dataset; a name that is listed twice counts twice."""
        parts: list[Part] = []
        for attr in get_dataset_list(names, self.data_args.dataset_dir):
            name = str(attr)
            while name in {part.name for part in parts}:
                name += "+"
            parts.append(Part(name, self.make(attr, kind), attr.num_samples if num_samples else None, attr.weight))
        return parts

    def make(self, attr: DatasetAttr, kind: type[DatasetProcessor]) -> "Dataset":
        """Return the rows of one dataset, from the store when nothing has changed."""
        return self.make_from(attr, open_source(attr, Access.of(self.model_args)), kind)

    def make_from(self, attr: DatasetAttr, source: Source, kind: type[DatasetProcessor]) -> "Dataset":
        """Return the rows of a source."""
        layout = replace(attr, num_samples=None, weight=None)  # they count rows, and do not change any
        key = digest(self.setting | {"rows": source.digest, "attr": repr(layout), "kind": kind.__name__})
        processor = kind(self.template, self.tokenizer, self.data_args)
        with rare_collections():
            rows, report, is_hit = prepared(
                key, lambda: self.build(attr, source, processor), self.data_args.overwrite_cache
            )
        self.reports.append(report)
        say(report, is_hit)
        if not report.num_kept:
            raise UserError(f"No row of the dataset {attr} can be used: {report.describe_dropped()}.")
        return rows

    def build(
        self, attr: DatasetAttr, source: Source, processor: DatasetProcessor
    ) -> tuple[PreparationReport, Iterator[list[HashedRow]]]:
        """Return an empty report and the batches of rows; the report is filled while the batches are read."""
        report = PreparationReport(str(attr), self.data_args.cutoff_len)
        logger.info(f"Preparing the dataset {attr} ...")
        return report, counted(self._encode(attr, source, processor, report), f"Preparing {attr}")

    def _encode(
        self, attr: DatasetAttr, source: Source, processor: DatasetProcessor, report: PreparationReport
    ) -> Iterator[list[HashedRow]]:
        pending: deque[list[tuple[Conversation, str]]] = deque()  # what is with the processor, oldest first

        def feed() -> Iterator[list[Conversation]]:
            rows = islice(source.read(), self.data_args.max_samples)
            conversations = read_conversations(attr, rows, report, processor.learns)
            while batch := list(islice(conversations, self.data_args.preprocessing_batch_size)):
                pending.append(batch)
                yield [conversation for conversation, _ in batch]

        workers = self.data_args.preprocessing_num_workers or 1
        threads = 2 if self.tokenizer.is_fast else 1  # a slow tokenizer is Python, which threads would only slow down
        try:
            for results in process_batches(processor, feed(), workers, num_threads=threads):
                yield list(self._keep(zip(pending.popleft(), results, strict=True), report))
        except WorkerDiedError as death:
            rows = f", at work on the rows from {pending[0][0][1]} to {pending[-1][-1][1]}"
            raise WorkerDiedError(death.worker_code, rows) from None

    def _keep(
        self, results: Iterable[tuple[tuple[Conversation, str], ProcessedRow | RowDropped]], report: PreparationReport
    ) -> Iterator[HashedRow]:
        """Yield the rows that are used, and count all."""
        for (conversation, where), result in results:
            row = settle(result, where, self.data_args)
            if isinstance(row, RowDropped):
                report.drop(row, where)
            else:
                report.keep(row)
                yield row, hash_of(conversation)


def settle(row: ProcessedRow | RowDropped, where: str, data_args: "DataArguments") -> ProcessedRow | RowDropped:
    """Apply on_overlong to a row that was cut."""
    reason = find_overlong(row, data_args.cutoff_len)
    if reason is None or data_args.on_overlong == "truncate":
        return row
    if data_args.on_overlong == "drop":
        return reason
    raise UserError(f"{where}: the row is {reason}, and on_overlong is error; raise cutoff_len or mend the row.")


def find_overlong(row: ProcessedRow | RowDropped, cutoff_len: int) -> RowDropped | None:
    """Return the reason to drop a row that does not fit into cutoff_len; None for one that fits."""
    is_overlong = isinstance(row, RowOverlong) if isinstance(row, RowDropped) else row.is_truncated
    return RowDropped(f"longer than cutoff_len {cutoff_len}") if is_overlong else None


@contextmanager
def rare_collections() -> Iterator[None]:
    """Look for unreachable cycles seldom: rows make none, and looking as often as usual costs a third more time."""
    threshold = gc.get_threshold()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*threshold)


def read_conversations(
    attr: DatasetAttr, rows: Iterator[Row], report: PreparationReport, learns: Learns = "answers"
) -> Iterator[tuple[Conversation, str]]:
    """Convert rows; those that cannot be used are counted in the report."""
    first = next(rows, None)
    attr = settle_layout(attr, first, learns)
    convert = get_dataset_converter(attr.formatting, attr)
    for row in chain([first] if first else [], rows):
        report.num_read += 1
        try:
            yield convert(row.values), row.where
        except RowDropped as reason:
            report.drop(reason, row.where)
        except FieldError as error:
            raise UserError(f"{row.where}: {error}.") from None


def settle_layout(attr: DatasetAttr, first: Row | None, learns: Learns = "answers") -> DatasetAttr:
    """Find out the layout of a dataset from its first row, and refuse what cannot be learned."""
    if first is None:
        raise UserError(f"The dataset {attr} holds no rows; an empty dataset cannot be used.")
    if attr.is_detected:
        attr = replace(detect_layout(first.values, attr), is_detected=False)
        logger.info(f"The dataset {attr} is read as {describe_layout(attr)}.")
    check_stage(attr, learns)
    check_columns(first.values, attr)
    return attr


def check_stage(attr: DatasetAttr, learns: Learns = "answers") -> None:
    """Refuse data that the stage cannot learn from."""
    media = [name for name in (attr.images, attr.videos, attr.audios) if name]
    if media:
        raise UserError(f"The dataset {attr} has media in {', '.join(media)}; this version learns from text only.")
    if learns == "pairs" and not attr.ranking:
        raise UserError(f"The dataset {attr} has no preference pairs, which the stage needs; its entry says ranking.")
    if learns == "marks" and not attr.kto_tag:
        raise UserError(f"The dataset {attr} has no marks of good and bad answers; name their column as kto_tag.")
    if attr.ranking and learns != "pairs":
        raise UserError(f"The dataset {attr} holds preference pairs; stage sft needs one answer a row.")
    if attr.kto_tag and learns == "answers":
        raise UserError(f"The dataset {attr} holds answers marked good or bad; stage sft would learn both alike.")


def describe_layout(attr: DatasetAttr) -> str:
    """Say which columns were found to mean what."""
    if attr.formatting == "alpaca":
        roles = {"prompt": attr.prompt, "query": attr.query, "response": attr.response, "history": attr.history}
    else:
        roles = {"turns": attr.messages, "role": attr.role_tag, "content": attr.content_tag}
    roles |= {"system": attr.system, "tools": attr.tools}
    roles |= {"chosen": attr.chosen, "rejected": attr.rejected, "good or bad": attr.kto_tag}
    return f"{attr.formatting} ({', '.join(f'{role} {name!r}' for role, name in roles.items() if name)})"


def say(report: PreparationReport, is_hit: bool) -> None:
    """Print what became of the rows."""
    logger.info(f"Dataset {report.describe()}{' (prepared before)' if is_hit else ''}")
    if report.dropped and read_env().is_main_process:
        logger.warning(f"Dataset {report.name}: dropped rows: {report.describe_dropped()}")


def hash_of(conversation: Conversation) -> int:
    """Hash the content of a conversation; the same on every machine and in every run."""
    parts: Sequence[str] = (
        conversation.system,
        conversation.tools,
        *(text for message in conversation.messages for text in (str(message.role), message.content)),
        *([conversation.rejected.content] if conversation.rejected else []),
        *([] if conversation.is_good is None else [str(conversation.is_good)]),
    )
    data = "\x00".join(parts).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True)
