"""Everything that a look at the data needs: the arguments of the run, its tokenizer and its template, no weights."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from ...extras.errors import UserError
from ...hparams import DataArguments, FinetuningArguments, ModelArguments, TrainingArguments
from ..conversation import Conversation, RowDropped
from ..hubs import Access
from ..loader import PROCESSORS
from ..parser import DatasetAttr, get_dataset_list
from ..preparation import find_overlong, read_conversations
from ..processor import DatasetProcessor, ProcessedRow, UnsupervisedDatasetProcessor
from ..progress import counted
from ..rendering import Template
from ..report import PreparationReport
from ..sources import open_source
from ..special_tokens import adds_bos
from ..template import get_template_and_fix_tokenizer
from .own_template import TemplateSample, sample_own_template


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ...hparams.config import RunConfig

Side: TypeAlias = Literal["train", "eval"]


@dataclass(frozen=True, kw_only=True)
class TokenizerFacts:
    """What the tokenizer was like before the template made it fit."""

    size: int
    has_eos: bool
    has_pad: bool
    adds_bos: bool
    """It puts a begin-of-text token in front of plain text."""
    own_template: tuple[TemplateSample, ...]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A run's data side, ready to be looked at."""

    model_args: ModelArguments
    data_args: DataArguments
    training_args: TrainingArguments
    stage: str
    tokenizer: "PreTrainedTokenizerBase"
    template: Template
    before: TokenizerFacts

    def datasets(self) -> list[tuple[Side, DatasetAttr]]:
        """Return what the run reads, each dataset once a side however often it is listed."""
        named: tuple[tuple[Side, tuple[str, ...] | None], ...] = (
            ("train", self.data_args.dataset),
            ("eval", self.data_args.eval_dataset),
        )
        found: dict[tuple[Side, str], DatasetAttr] = {}
        for side, names in named:
            for attr in get_dataset_list(names, self.data_args.dataset_dir):
                found.setdefault((side, str(attr)), attr)
        return [(side, attr) for (side, _), attr in found.items()]

    def is_predicted(self, side: Side) -> bool:
        """Rows of this side are prompts, for which the model writes an answer."""
        return isinstance(self.processor(side), UnsupervisedDatasetProcessor)

    def processor(self, side: Side, **changes: Any) -> DatasetProcessor:
        """Return what makes the rows of one side, as the run would, or with other data arguments."""
        is_measured = side == "eval" and self.training_args.predict_with_generate
        kind = UnsupervisedDatasetProcessor if is_measured else PROCESSORS.get(self.stage)
        return kind(self.template, self.tokenizer, replace(self.data_args, **changes))


class ScannedRow(NamedTuple):
    """A row of a dataset: what was read and what became of it."""

    side: Side
    dataset: str
    number: int
    """From 1, in the order in which rows are read."""
    where: str
    conversation: Conversation | None
    """None when the row could not even be read as one."""
    outcome: ProcessedRow | RowDropped


def load_bench(config: "RunConfig") -> Bench:
    """Load the tokenizer and the template of a training configuration."""
    from ...model.loader import load_tokenizer

    model_args, data_args = config.get(ModelArguments), config.get(DataArguments)
    if not data_args.dataset and not data_args.eval_dataset:
        raise UserError("There is nothing to look at: name a dataset, as in dataset: my_data.")
    tokenizer = load_tokenizer(model_args, needs_weights=False)["tokenizer"]
    before = TokenizerFacts(
        size=len(tokenizer),
        has_eos=tokenizer.eos_token is not None,
        has_pad=tokenizer.pad_token is not None,
        adds_bos=adds_bos(tokenizer),
        own_template=sample_own_template(tokenizer, data_args.enable_thinking),
    )
    return Bench(
        model_args=model_args,
        data_args=data_args,
        training_args=config.get(TrainingArguments),
        stage=config.get(FinetuningArguments).stage,
        tokenizer=tokenizer,
        template=get_template_and_fix_tokenizer(tokenizer, data_args),
        before=before,
    )


def scan(bench: Bench, side: Side, attr: DatasetAttr, batch_size: int | None = None) -> Iterator[ScannedRow]:
    """Yield every row of a dataset with what training would make of it; memory does not grow with their number."""
    batches = _scan_batches(bench, side, attr, batch_size or bench.data_args.preprocessing_batch_size)
    for batch in counted(batches, f"Reading {attr} ({side})"):
        yield from batch


def _scan_batches(bench: Bench, side: Side, attr: DatasetAttr, batch_size: int) -> Iterator[list[ScannedRow]]:
    source = open_source(attr, Access.of(bench.model_args))
    processor = bench.processor(side)
    unread = _UnreadRows(str(attr), bench.data_args.cutoff_len)
    found = read_conversations(attr, islice(source.read(), bench.data_args.max_samples), unread, processor.learns)
    numbered = ((unread.num_read, conversation, where) for conversation, where in found)
    while True:
        batch = list(islice(numbered, batch_size))
        outcomes = processor.process([conversation for _, conversation, _ in batch]) if batch else []
        rows = [
            ScannedRow(side, str(attr), number, where, conversation, _settle(outcome, bench.data_args))
            for (number, conversation, where), outcome in zip(batch, outcomes, strict=True)
        ]
        rows += [
            ScannedRow(side, str(attr), number, where, None, RowDropped(reason))
            for number, where, reason in unread.take()
        ]
        if not rows:
            return
        yield sorted(rows, key=lambda row: row.number)


def _settle(outcome: ProcessedRow | RowDropped, data_args: DataArguments) -> ProcessedRow | RowDropped:
    """Drop an overlong row where the run would; where the run would stop, it is kept to be reported."""
    reason = find_overlong(outcome, data_args.cutoff_len)
    return reason if reason is not None and data_args.on_overlong == "drop" else outcome


@dataclass
class _UnreadRows(PreparationReport):
    """Keeps the place of every row that is dropped while it is read, not only of the first."""

    places: list[tuple[int, str, str]] = field(default_factory=list)

    def drop(self, reason: object, where: str) -> None:
        self.places.append((self.num_read, where, str(reason)))

    def take(self) -> list[tuple[int, str, str]]:
        """Return the places since the last call."""
        places, self.places = self.places, []
        return places
