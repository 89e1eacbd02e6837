"""Rows for supervised fine-tuning: answers are learned up to and with their end token, nothing else is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from ...extras.constants import IGNORE_INDEX
from ...extras.errors import UserError
from ..conversation import Conversation, Message, RowDropped, RowOverlong, is_loss_weight
from ..packing import LOSS_WEIGHTS, PackedRow, PackedRows
from ..rendering import EncodedConversation, EncodedTurn
from .processor_utils import DatasetProcessor, ProcessedRow, infer_seqlen


class CutTurn(NamedTuple):
    """A turn as it fits into the row."""

    source: list[int]
    target: list[int]
    weight: float
    """What the loss of the answer is multiplied by; 0: it is not learned."""
    is_whole: bool


@dataclass(frozen=True)
class SupervisedDatasetProcessor(DatasetProcessor):
    """Labels stand on the answers (on prompts too with train_on_prompt); mask_history leaves only the last one."""

    def process_one(self, encoded: EncodedConversation) -> ProcessedRow:
        """Join the turns that fit and label them."""
        if encoded.turns[-1].message is None:
            raise RowDropped("no answer at the end")

        turns = self._cut(encoded.turns)
        is_whole = len(turns) == len(encoded.turns) and all(turn.is_whole for turn in turns)
        is_weighed = any(turn.weight not in (0, 1) for turn in turns)
        input_ids: list[int] = []
        labels: list[int] = []
        weights: list[float] = []
        before = 0.0  # weight of a learned, whole answer that stands right before
        for turn in turns:
            source = self._label_source(turn.source, before)
            labels += source + (turn.target if turn.weight else [IGNORE_INDEX] * len(turn.target))
            if is_weighed:
                weights += self._weigh(source, before) + [turn.weight] * len(turn.target)
            input_ids += turn.source + turn.target
            before = turn.weight if turn.is_whole else 0.0
        if is_whole:
            tail = [self._eos] if self.template.efficient_eos else []
            ending = encoded.closing[: self.data_args.cutoff_len - len(input_ids) - len(tail)] + tail
            ending_labels = self._label_ending(ending, before)
            input_ids += ending
            labels += ending_labels
            weights += self._weigh(ending_labels, before) if is_weighed else []

        num_supervised = len(labels) - labels.count(IGNORE_INDEX)
        if num_supervised == 0:
            raise RowDropped("nothing to learn") if is_whole else RowOverlong("nothing to learn within cutoff_len")
        return ProcessedRow(input_ids, labels, num_supervised, not is_whole, weights=weights if is_weighed else None)

    def _cut(self, turns: list[EncodedTurn]) -> list[CutTurn]:
        """Fit the turns into cutoff_len, from the first on; from the last back with mask_history."""
        budget = self.data_args.cutoff_len - int(self.template.efficient_eos)
        last = len(turns) - 1
        cut: list[CutTurn] = []
        for index in range(last, -1, -1) if self.data_args.mask_history else range(last + 1):
            if budget <= 0:
                break
            source, target, message = turns[index]
            source_len, target_len = infer_seqlen(len(source), len(target), budget)
            budget -= source_len + target_len
            is_whole = source_len == len(source) and target_len == len(target)
            weight = self._weight(message, is_last=index == last)
            cut.append(CutTurn(source[:source_len], target[:target_len], weight, is_whole))
        return cut[::-1] if self.data_args.mask_history else cut

    def _weight(self, message: Message | None, is_last: bool) -> float:
        loss = message.loss if message else None
        if not is_loss_weight(loss):
            raise UserError(f"A message has loss {loss!r}; give true, false or a number from 0 up.")
        if loss is None:
            loss = is_last or not self.data_args.mask_history
        return float(loss)

    def _label_source(self, source: list[int], before: float) -> list[int]:
        if self.data_args.train_on_prompt:
            return source
        labels = [IGNORE_INDEX] * len(source)
        if self.template.efficient_eos and before and source:
            labels[0] = self._eos
        return labels

    def _label_ending(self, ending: list[int], before: float) -> list[int]:
        """Label what stands behind the last answer: template text, and the end of the row with efficient_eos."""
        labels = self._label_source(ending, before)
        if self.template.efficient_eos and before and ending[-1:] == [self._eos]:
            labels[-1] = self._eos
        return labels

    def _weigh(self, labels: list[int], before: float) -> list[float]:
        """Weigh labels outside of answers: what ends an answer weighs as much as it does."""
        weight = 1.0 if self.data_args.train_on_prompt else before
        return [0.0 if label == IGNORE_INDEX else weight for label in labels]

    @property
    def _eos(self) -> int:
        return cast(int, self.tokenizer.eos_token_id)  # get_template_and_fix_tokenizer has seen to it


@dataclass(frozen=True)
class PackedSupervisedDatasetProcessor(SupervisedDatasetProcessor):
    """The same rows, and a way to pack them at once.

    A run packs over the whole epoch instead (packing.py): a batch of conversations leaves more room empty.
    """

    def pack(self, conversations: Sequence[Conversation], seed: int = 0) -> list[PackedRow]:
        """Return packed rows of at most cutoff_len tokens; conversations that cannot be used are left out."""
        rows = [row for row in self.process(conversations) if isinstance(row, ProcessedRow)]
        documents = [{"input_ids": row.input_ids, "labels": row.labels, LOSS_WEIGHTS: row.weights} for row in rows]
        packed = PackedRows(documents, self.data_args.cutoff_len, seed)
        return [packed[index] for index in range(len(packed))]
