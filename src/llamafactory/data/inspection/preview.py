"""`data preview`: rows as the model will see them, cut at the bounds of turns and of what is learned."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import groupby, islice
from typing import Any, NamedTuple

from ...extras.constants import IGNORE_INDEX
from ..conversation import RESPONSE_ROLES, Conversation
from ..processor import ProcessedRow
from ..rendering import EncodedConversation
from .bench import Bench, ScannedRow, scan


class Stretch(NamedTuple):
    """Text of one colour."""

    text: str
    is_control: bool


@dataclass(frozen=True)
class Segment:
    """Tokens start to end (not included) that belong to one turn and are all learned or all not."""

    role: str
    start: int
    end: int
    is_learned: bool
    stretches: tuple[Stretch, ...]
    weight: float = 1.0
    """What the loss of its tokens is multiplied by."""

    @property
    def text(self) -> str:
        """What the tokens decode to, control tokens included."""
        return "".join(stretch.text for stretch in self.stretches)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        values = asdict(self) | {"text": self.text}
        del values["stretches"]
        return values


@dataclass(frozen=True, kw_only=True)
class PreviewRow:
    """One row to show."""

    side: str
    dataset: str
    number: int
    where: str
    dropped: str = ""
    """Why the row is not used; "" when it is."""
    is_truncated: bool = False
    num_supervised: int = 0
    segments: tuple[Segment, ...] = ()
    answer: str | None = None
    """With predict_with_generate: what the model's answer is compared with."""
    others: dict[str, str] = field(default_factory=dict)
    """Further sequences of the row, as text: the worse answer of a pair."""
    num_other_tokens: int = 0
    input_ids: tuple[int, ...] = ()
    labels: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences."""
        return len(self.input_ids) + self.num_other_tokens

    def to_dict(self, with_ids: bool) -> dict[str, Any]:
        """Return what JSON can hold."""
        values = asdict(self) | {"segments": [segment.to_dict() for segment in self.segments]}
        values["num_tokens"] = self.num_tokens
        if not with_ids:
            del values["input_ids"], values["labels"]
        return values


class Span(NamedTuple):
    """Ids that one turn consists of."""

    role: str
    ids: list[int]


def preview_data(bench: Bench, num_rows: int, offset: int) -> Iterator[PreviewRow]:
    """Yield num_rows rows of each dataset, from row offset (the first is 0) on; no more is read than that."""
    for side, attr in bench.datasets():
        rows = scan(bench, side, attr, batch_size=min(offset + num_rows, bench.data_args.preprocessing_batch_size))
        for row in islice(rows, offset, offset + num_rows):
            yield preview_row(bench, row)


def preview_row(bench: Bench, row: ScannedRow) -> PreviewRow:
    """Cut a row into segments."""
    place = {"side": row.side, "dataset": row.dataset, "number": row.number, "where": row.where}
    outcome = row.outcome
    if not isinstance(outcome, ProcessedRow):
        return PreviewRow(**place, dropped=str(outcome))
    is_predicted = bench.is_predicted(row.side)
    weights = [0.0 if is_predicted else float(label != IGNORE_INDEX) for label in outcome.labels]
    weights = outcome.weights or weights + [0.0] * (len(outcome.input_ids) - len(weights))
    return PreviewRow(
        **place,
        is_truncated=outcome.is_truncated,
        num_supervised=outcome.num_supervised,
        segments=tuple(_segments(bench, row, outcome, weights)),
        others={
            name.removesuffix("_input_ids"): str(bench.tokenizer.decode(ids))
            for name, ids in (outcome.more or {}).items()
            if name.endswith("_input_ids")
        },
        num_other_tokens=sum(outcome.sequence_lengths[1:]),
        answer=str(bench.tokenizer.decode(outcome.labels)) if is_predicted else None,
        input_ids=tuple(outcome.input_ids),
        labels=tuple(outcome.labels),
    )


def _segments(bench: Bench, row: ScannedRow, outcome: ProcessedRow, weights: list[float]) -> Iterator[Segment]:
    added = bench.tokenizer.added_tokens_decoder
    specials = {number for number, token in added.items() if token.special}
    roles = _roles(bench, row, outcome)
    keys = zip(range(len(roles)), roles, weights, strict=False)
    for (role, weight), tokens in groupby(keys, key=lambda item: item[1:]):
        places = [place for place, _, _ in tokens]
        start, end = places[0], places[-1] + 1
        stretches = tuple(
            Stretch(str(bench.tokenizer.decode(list(ids))), is_control)
            for is_control, ids in groupby(outcome.input_ids[start:end], key=specials.__contains__)
        )
        yield Segment(role[1], start, end, weight > 0, stretches, weight or 1.0)


def _roles(bench: Bench, row: ScannedRow, outcome: ProcessedRow) -> list[tuple[int, str]]:
    """Return for every token the number and the role of its turn; a turn that was cut is shorter."""
    ids = outcome.input_ids
    roles: list[tuple[int, str]] = []
    for number, span in enumerate(_spans(bench, row.conversation, outcome)):
        start = len(roles)
        length = 0
        while length < len(span.ids) and ids[start + length : start + length + 1] == span.ids[length : length + 1]:
            length += 1
        roles += [(number, span.role)] * length
    return roles + [(-1, "end")] * (len(ids) - len(roles))


def _spans(bench: Bench, conversation: Conversation | None, outcome: ProcessedRow) -> list[Span]:
    if conversation is None or (outcome.is_truncated and bench.data_args.mask_history):
        return [Span("row", outcome.input_ids)]  # cut in front: where the turns begin is not known
    (encoded,) = bench.template.encode_conversations(bench.tokenizer, [conversation])
    if not isinstance(encoded, EncodedConversation):
        return []
    lead = (["system"] if conversation.system or bench.template.default_system else []) + (
        ["tools"] if conversation.tools else []
    )
    spans: list[Span] = []
    prompts = _prompt_roles(conversation, lead)
    for turn, prompt in zip(encoded.turns, prompts, strict=False):
        spans.append(Span(prompt, turn.source))
        spans.append(Span(str(turn.message.role) if turn.message else "", turn.target))
    return spans


def _prompt_roles(conversation: Conversation, lead: list[str]) -> list[str]:
    """Name what stands before each answer, as in "system+user"."""
    names: list[str] = []
    open_roles = list(lead)
    for message in conversation.messages:
        if message.role in RESPONSE_ROLES:
            names.append("+".join(dict.fromkeys(open_roles)))
            open_roles = []
        else:
            open_roles.append(str(message.role))
    return [*names, "+".join(dict.fromkeys(open_roles))]
