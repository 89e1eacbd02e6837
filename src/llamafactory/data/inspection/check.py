"""`data check`: what is wrong with the data of a run, with counts and the first places."""

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, cast

from ...extras.constants import IGNORE_INDEX
from ...extras.errors import UserError
from ..conversation import Conversation, Role, RowOverlong
from ..encoding import TextEncoder, encoder_of
from ..lengths import IDS
from ..parser import DatasetAttr
from ..preparation import hash_of
from ..processor import DatasetProcessor, ProcessedRow
from .bench import Bench, ScannedRow, Side, scan
from .findings import Finding, Findings
from .own_template import compare_templates


PLACEHOLDER = re.compile(r"\{\{\s*(?:name|author)\s*\}\}")
UNCUT = 1 << 30  # a cutoff_len that cuts nothing


@dataclass(frozen=True)
class CheckedDataset:
    """A dataset that was looked through."""

    name: str
    side: Side
    num_read: int
    num_kept: int


@dataclass(frozen=True)
class CheckResult:
    """What a check found."""

    datasets: tuple[CheckedDataset, ...]
    findings: tuple[Finding, ...]
    num_errors: int
    num_warnings: int

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self) | {
            "is_ok": self.num_errors == 0,
            "findings": [finding.to_dict() for finding in self.findings],
        }


class Trouble(NamedTuple):
    """One thing that is wrong with one row."""

    code: str
    note: str = ""


def check_data(bench: Bench) -> CheckResult:
    """Read every row of a run and look for trouble."""
    findings = Findings()
    check_tokenizer(bench, findings)
    seen = SeenRows()
    datasets = [check_dataset(bench, findings, seen, side, attr) for side, attr in bench.datasets()]
    return CheckResult(tuple(datasets), tuple(findings.sorted()), findings.count("error"), findings.count("warning"))


def check_tokenizer(bench: Bench, findings: Findings) -> None:
    """Look at the tokenizer and the template, before any row."""
    before = bench.before
    if not before.has_eos:
        findings.say("no-eos", f"{bench.tokenizer.eos_token!r} is used")
    if not before.has_pad:
        findings.say("no-pad", f"{bench.tokenizer.pad_token!r} is used")
    if len(bench.tokenizer) > before.size:
        findings.say("new-tokens", f"the vocabulary grows from {before.size} to {len(bench.tokenizer)}")
    for title, difference in compare_templates(bench.tokenizer, bench.template, before.own_template)[:1]:
        findings.say("template", f"{title}: {difference}")


def check_dataset(bench: Bench, findings: Findings, seen: "SeenRows", side: Side, attr: DatasetAttr) -> CheckedDataset:
    """Look through one dataset; one that cannot be read is an error among the others."""
    inspector = RowInspector(bench, side)
    num_read = num_kept = 0
    try:
        for row in scan(bench, side, attr):
            num_read += 1
            for trouble in inspector.look(row):
                subject = trouble.note if trouble.code == "dropped" else ""
                findings.add(trouble.code, row, "" if subject else trouble.note, subject=subject)
            if isinstance(row.outcome, ProcessedRow):
                num_kept += 1
                for trouble in seen.look(row):
                    findings.add(trouble.code, row, trouble.note)
        if not num_kept:
            findings.say("no-rows", f"{attr} ({side})")
    except UserError as error:
        findings.say("unreadable", str(error))
    return CheckedDataset(str(attr), side, num_read, num_kept)


@dataclass(frozen=True)
class RowInspector:
    """Looks at rows one by one."""

    bench: Bench
    side: Side

    @cached_property
    def encoder(self) -> TextEncoder:
        """Knows what looks like a control token."""
        return encoder_of(self.bench.tokenizer)

    @cached_property
    def uncut(self) -> DatasetProcessor:
        """Makes whole rows of those that were cut."""
        return self.bench.processor(self.side, cutoff_len=UNCUT)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return frozenset(self.bench.template.get_stop_token_ids(self.bench.tokenizer))

    def look(self, row: ScannedRow) -> Iterator[Trouble]:
        """Yield what is wrong with a row."""
        if row.conversation is not None:
            for check in CONTENT_CHECKS:
                yield from check(row.conversation)
            yield from self.spelled_tokens(row.conversation)
        if not isinstance(row.outcome, ProcessedRow):
            is_fatal = isinstance(row.outcome, RowOverlong) and self.stops_at_overlong
            yield Trouble("overlong") if is_fatal else Trouble("dropped", str(row.outcome))
            return
        if row.conversation is not None and self.learns_answers:
            for ids, labels in sequences_of(row.outcome):
                yield from self.ends(row.conversation, row.outcome.is_truncated, labels)
                yield from self.begins(ids, row.outcome.is_truncated)
            yield from self.cuts(row.conversation, row.outcome)
            return
        if row.outcome.is_truncated:
            yield Trouble("overlong" if self.stops_at_overlong else "truncated")
        yield from self.begins(row.outcome.input_ids, row.outcome.is_truncated)

    @cached_property
    def learns_answers(self) -> bool:
        """Rows hold answers with labels, not prompts to be answered or plain text."""
        return self.bench.stage in ("sft", "rm", "dpo", "kto") and not self.bench.is_predicted(self.side)

    def spelled_tokens(self, conversation: Conversation) -> Iterator[Trouble]:
        """Find control tokens that content spells."""
        for text in texts_of(conversation):
            if self.encoder.has_control_text(text):
                match = self.encoder.special_pattern.search(text)
                yield Trouble("control-text", match.group() if match else "")
                return

    def ends(self, conversation: Conversation, is_truncated: bool, labels: list[int]) -> Iterator[Trouble]:
        """Find answers that end without a learned end token; the last one of a cut row may."""
        if self.bench.data_args.train_on_prompt:
            if not is_truncated and not self.stop_ids.intersection(labels):
                yield Trouble("no-end-token")
            return
        ends = learned_ends(labels)
        if is_truncated:
            ends = ends[:-1]
        elif any(message.role is Role.FUNCTION for message in conversation.messages):
            # In some formats a call ends where the tool's answer begins, with a token that is not its own.
            ends = ends[-1:] if conversation.messages[-1].role is Role.ASSISTANT else []
        if any(token not in self.stop_ids for token in ends):
            last = next(token for token in ends if token not in self.stop_ids)
            yield Trouble("no-end-token", f"ends with {self.bench.tokenizer.decode([last])!r}")

    @property
    def stops_at_overlong(self) -> bool:
        """The run would stop at a row that is too long."""
        return self.bench.data_args.on_overlong == "error"

    def cuts(self, conversation: Conversation, row: ProcessedRow) -> Iterator[Trouble]:
        """Tell how much of a cut row is lost."""
        if not row.is_truncated:
            return
        if self.stops_at_overlong:
            yield Trouble("overlong", f"more than {max(row.sequence_lengths)} tokens")
            return
        (whole,) = self.uncut.process([conversation])
        if not isinstance(whole, ProcessedRow):
            yield Trouble("truncated")
            return
        before, after = max(whole.sequence_lengths), max(row.sequence_lengths)
        yield Trouble("truncated", f"{before} tokens, {after} are left")
        if whole.num_supervised > row.num_supervised:
            yield Trouble("answer-cut", f"{row.num_supervised} of {whole.num_supervised} learned tokens are left")

    def begins(self, ids: list[int], is_truncated: bool) -> Iterator[Trouble]:
        """Find a begin-of-text token that is missing or doubled."""
        bos = cast("int | None", self.bench.tokenizer.bos_token_id)
        if bos is None:
            return
        if ids.count(bos) > 1 and any(one == other == bos for one, other in pairwise(ids)):
            yield Trouble("double-bos")
        if self.bench.before.adds_bos and ids[0] != bos and not is_truncated:
            yield Trouble("no-bos")


class SeenRows:
    """Remembers the content of rows by hash: eight bytes, and where it was first seen."""

    def __init__(self) -> None:
        self._first: dict[Side, dict[int, tuple[str, int]]] = {"train": {}, "eval": {}}

    def look(self, row: ScannedRow) -> Iterator[Trouble]:
        """Yield how a row repeats an earlier one."""
        if row.conversation is None:
            return
        number = hash_of(row.conversation)
        dataset, first = self._first[row.side].setdefault(number, (row.dataset, row.number))
        if dataset != row.dataset:
            yield Trouble("duplicate-across", f"same as {dataset}, row {first}")
        elif first != row.number:
            yield Trouble("duplicate", f"same as row {first}")
        if row.side == "eval" and number in self._first["train"]:
            dataset, first = self._first["train"][number]
            yield Trouble("overlap", f"same as {dataset}, row {first}")


def empty_turns(conversation: Conversation) -> Iterator[Trouble]:
    """Find turns without text."""
    for index, message in enumerate(conversation.messages, 1):
        if not message.content.strip():
            yield Trouble("empty-turn", f"turn {index}, {message.role}")
            return
    if conversation.rejected is not None and not conversation.rejected.content.strip():
        yield Trouble("empty-turn", "the worse answer")


def repeated_turns(conversation: Conversation) -> Iterator[Trouble]:
    """Find a turn with the text of the turn before it, or of the turn before that, which is the same speaker's."""
    texts = [message.content.strip() for message in conversation.messages]
    for index in range(1, len(texts)):
        if texts[index] and texts[index] in texts[max(index - 2, 0) : index]:
            yield Trouble("repeated-turn", f"turn {index + 1}, {conversation.messages[index].role}")
            return


def placeholders(conversation: Conversation) -> Iterator[Trouble]:
    """Find {{name}} and {{author}} that were not replaced."""
    for text in texts_of(conversation):
        match = PLACEHOLDER.search(text)
        if match:
            yield Trouble("placeholder", match.group())
            return


def texts_of(conversation: Conversation) -> Iterator[str]:
    """Yield every text of a conversation."""
    yield conversation.system
    yield from (message.content for message in conversation.messages)
    if conversation.rejected is not None:
        yield conversation.rejected.content


def sequences_of(row: ProcessedRow) -> Iterator[tuple[list[int], list[int]]]:
    """Yield ids and labels of each sequence that is learned: of both answers of a pair."""
    yield row.input_ids, row.labels
    more = cast("dict[str, list[int]]", row.more or {})
    yield from ((more[name], more[name.replace(IDS, "labels")]) for name in more if name.endswith(IDS))


def learned_ends(labels: list[int]) -> list[int]:
    """Return the last label of every learned stretch."""
    following = [*labels[1:], IGNORE_INDEX]
    return [
        label
        for label, after in zip(labels, following, strict=True)
        if after == IGNORE_INDEX and label != IGNORE_INDEX
    ]


CONTENT_CHECKS: tuple[Callable[[Conversation], Iterator[Trouble]], ...] = (empty_turns, repeated_turns, placeholders)
