"""From the name of a dataset to its encoded rows on disk, one dataset at a time."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from ..extras.env import read_env
from ..extras.errors import UserError
from ..extras.logging import get_logger
from .conversation import Conversation, FieldError, RowDropped
from .converter import check_columns, detect_layout, get_dataset_converter
from .fingerprint import code_digest, digest, options_of, tokenizer_digest
from .parser import DatasetAttr, get_dataset_list
from .processor import DatasetProcessor
from .rendering import Template
from .report import PreparationReport
from .sources import Row, Source, open_source
from .store import HashedRow, prepared
from .workers import process_batches


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
    seed: int

    @cached_property
    def setting(self) -> dict[str, Any]:
        """What all rows depend on, besides their content."""
        return {
            "template": repr(self.template),
            "tokenizer": tokenizer_digest(self.tokenizer),
            "options": digest(options_of(self.data_args)),
            "code": code_digest(),
        }

    def make_all(self, names: Iterable[str] | None, kind: type[DatasetProcessor]) -> dict[str, "Dataset"]:
        """Return the rows of each dataset by name; a name that is listed twice counts twice."""
        rows: dict[str, Dataset] = {}
        for attr in get_dataset_list(names, self.data_args.dataset_dir):
            name = str(attr)
            while name in rows:
                name += "+"
            rows[name] = self.make(attr, kind)
        return rows

    def make(self, attr: DatasetAttr, kind: type[DatasetProcessor]) -> "Dataset":
        """Return the rows of one dataset, from the store when nothing has changed."""
        source = open_source(attr, self.model_args.cache_dir, self.model_args.hf_hub_token)
        key = digest(self.setting | {"rows": source.digest, "attr": repr(attr), "kind": kind.__name__})
        processor = kind(self.template, self.tokenizer, self.data_args)
        rows, report, is_hit = prepared(
            key, lambda: self.build(attr, source, processor), self.data_args.overwrite_cache
        )
        say(report, is_hit)
        if not report.num_kept:
            raise UserError(f"No row of the dataset {attr} can be used: {report.describe_dropped()}.")
        return rows if attr.num_samples is None else self.resample(rows, attr.num_samples)

    def build(
        self, attr: DatasetAttr, source: Source, processor: DatasetProcessor
    ) -> tuple[PreparationReport, Iterator[list[HashedRow]]]:
        """Return an empty report and the batches of rows; the report is filled while the batches are read."""
        report = PreparationReport(str(attr), self.data_args.cutoff_len)
        logger.info(f"Preparing the dataset {attr} ...")
        return report, self._encode(attr, source, processor, report)

    def resample(self, rows: "Dataset", num_samples: int) -> "Dataset":
        """Draw exactly num_samples rows; each comes up again only when all have come up."""
        import numpy as np

        generator = np.random.default_rng(self.seed)
        rounds = [generator.permutation(len(rows)) for _ in range(-(-num_samples // len(rows)))]
        return rows.select(np.concatenate(rounds)[:num_samples])

    def _encode(
        self, attr: DatasetAttr, source: Source, processor: DatasetProcessor, report: PreparationReport
    ) -> Iterator[list[HashedRow]]:
        pending: list[list[tuple[Conversation, str]]] = []  # what is with the processor, oldest first

        def feed() -> Iterator[list[Conversation]]:
            conversations = read_conversations(attr, islice(source.read(), self.data_args.max_samples), report)
            while batch := list(islice(conversations, self.data_args.preprocessing_batch_size)):
                pending.append(batch)
                yield [conversation for conversation, _ in batch]

        for results in process_batches(processor, feed(), self.data_args.preprocessing_num_workers or 1):
            kept: list[HashedRow] = []
            for (conversation, where), row in zip(pending.pop(0), results, strict=True):
                if isinstance(row, RowDropped):
                    report.drop(row, where)
                else:
                    report.keep(row)
                    kept.append((row, hash_of(conversation)))
            yield kept


def read_conversations(
    attr: DatasetAttr, rows: Iterator[Row], report: PreparationReport
) -> Iterator[tuple[Conversation, str]]:
    """Convert rows; those that cannot be used are counted in the report."""
    first = next(rows, None)
    if first is None:
        raise UserError(f"The dataset {attr} holds no rows; an empty dataset cannot be used.")
    if attr.is_detected:
        attr = detect_layout(first.values, attr)
        logger.info(f"The dataset {attr} is read as {describe_layout(attr)}.")
    check_stage(attr)
    check_columns(first.values, attr)

    convert = get_dataset_converter(attr.formatting, attr)
    for row in chain([first], rows):
        report.num_read += 1
        try:
            yield convert(row.values), row.where
        except RowDropped as reason:
            report.drop(reason, row.where)
        except FieldError as error:
            raise UserError(f"{row.where}: {error}.") from None


def check_stage(attr: DatasetAttr) -> None:
    """Refuse data that supervised fine-tuning on text cannot learn from."""
    media = [name for name in (attr.images, attr.videos, attr.audios) if name]
    if media:
        raise UserError(f"The dataset {attr} has media in {', '.join(media)}; this version learns from text only.")
    if attr.ranking:
        raise UserError(f"The dataset {attr} holds preference pairs; stage sft needs one answer a row.")
    if attr.kto_tag:
        raise UserError(f"The dataset {attr} holds answers marked good or bad; stage sft would learn both alike.")


def describe_layout(attr: DatasetAttr) -> str:
    """Say which columns were found to mean what."""
    if attr.formatting != "alpaca":
        return f"{attr.formatting} (turns in {attr.messages!r} with {attr.role_tag!r} and {attr.content_tag!r})"
    return f"alpaca (prompt {attr.prompt!r}, query {attr.query!r}, response {attr.response!r})"


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
    )
    data = "\x00".join(parts).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True)
