"""What all processors share: their protocol, their rows, and how a pair that is too long is cut."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from ..conversation import Conversation, RowDropped
from ..packing import pack_lengths
from ..rendering import EncodedConversation, Template


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ...hparams import DataArguments


Learns = Literal["answers", "pairs", "marks"]
"""What a stage needs of a row: an answer, a better and a worse one, or one with a mark."""


class ProcessedRow(NamedTuple):
    """One row as the model gets it."""

    input_ids: list[int]
    labels: list[int]
    num_supervised: int
    is_truncated: bool
    prefix: str = ""
    """What the names of the columns of ids and labels begin with."""
    more: dict[str, list[int] | bool] | None = None
    """Further columns, the same in every row of a kind."""
    weights: list[float] | None = None
    """What the loss of each label is multiplied by, 0 where there is no label; None where it is 1 everywhere."""

    @property
    def sequence_lengths(self) -> list[int]:
        """Tokens of each sequence: a pair has two."""
        more = (self.more or {}).items()
        others = [len(ids) for name, ids in more if name.endswith("input_ids") and not isinstance(ids, bool)]
        return [len(self.input_ids), *others]


@dataclass(frozen=True)
class DatasetProcessor(ABC):
    """Turns conversations into rows, many at a time."""

    learns: ClassVar[Learns] = "answers"

    template: Template
    tokenizer: "PreTrainedTokenizerBase"
    data_args: "DataArguments"

    def process(self, conversations: Sequence[Conversation]) -> list[ProcessedRow | RowDropped]:
        """Return a row for each conversation, or why there is none."""
        encoded = self.template.encode_conversations(self.tokenizer, conversations)
        return [item if isinstance(item, RowDropped) else self._try_process(item) for item in encoded]

    @abstractmethod
    def process_one(self, encoded: EncodedConversation) -> ProcessedRow:
        """Make the row of one conversation; RowDropped says why it cannot be used."""

    def _try_process(self, encoded: EncodedConversation) -> ProcessedRow | RowDropped:
        try:
            return self.process_one(encoded)
        except RowDropped as reason:
            return reason


def infer_seqlen(source_len: int, target_len: int, cutoff_len: int) -> tuple[int, int]:
    """Return how many source and target tokens fit into cutoff_len; a short side stays whole, both are cut behind."""
    if target_len * 2 < cutoff_len:
        max_target_len = cutoff_len
    elif source_len * 2 < cutoff_len:
        max_target_len = cutoff_len - source_len
    else:
        max_target_len = int(cutoff_len * (target_len / (source_len + target_len)))

    new_target_len = min(max_target_len, target_len)
    return min(max(cutoff_len - new_target_len, 0), source_len), new_target_len


def greedy_knapsack(numbers: Sequence[int], capacity: int) -> list[list[int]]:
    """Put numbers into knapsacks that hold `capacity`: best fit, largest first. Returns the numbers of each."""
    return [[numbers[index] for index in row] for row in pack_lengths(numbers, capacity)]
