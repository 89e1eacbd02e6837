"""Rows for preference stages: one prompt with a better and a worse answer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

from ...extras.constants import IGNORE_INDEX
from ..conversation import Conversation, RowDropped, RowOverlong
from ..rendering import EncodedConversation
from .processor_utils import DatasetProcessor, Learns, ProcessedRow, infer_seqlen


@dataclass(frozen=True)
class PairwiseDatasetProcessor(DatasetProcessor):
    """Both answers stand behind the same prompt ids, and are cut at the same length."""

    learns: ClassVar[Learns] = "pairs"

    def process(self, conversations: Sequence[Conversation]) -> list[ProcessedRow | RowDropped]:
        """Encode every conversation with its better and with its worse ending."""
        chosen = self.template.encode_conversations(self.tokenizer, conversations)
        rejected = self.template.encode_conversations(self.tokenizer, [with_rejected(item) for item in conversations])
        return [self._try_pair(*pair) for pair in zip(chosen, rejected, strict=True)]

    def process_one(self, encoded: EncodedConversation) -> ProcessedRow:
        """A pair needs two answers."""
        raise RowDropped("no second answer")

    def process_pair(self, chosen: EncodedConversation, rejected: EncodedConversation) -> ProcessedRow:
        """Make the row of one prompt and its two answers."""
        prompt, better = split_prompt(chosen)
        _, worse = split_prompt(rejected)
        tail = [cast(int, self.tokenizer.eos_token_id)] if self.template.efficient_eos else []
        better, worse = better + tail, worse + tail
        longer = max(len(better), len(worse))
        prompt_len, answer_len = infer_seqlen(len(prompt), longer, self.data_args.cutoff_len)
        is_truncated = prompt_len < len(prompt) or answer_len < longer
        prompt, better, worse = prompt[:prompt_len], better[:answer_len], worse[:answer_len]
        if better == worse:
            raise (
                RowOverlong("both answers are the same within cutoff_len")
                if is_truncated
                else RowDropped("both answers are the same")
            )
        return ProcessedRow(
            prompt + better,
            label_answer(prompt, better),
            len(better) + len(worse),
            is_truncated,
            prefix="chosen_",
            more={"rejected_input_ids": prompt + worse, "rejected_labels": label_answer(prompt, worse)},
        )

    def _try_pair(
        self, chosen: EncodedConversation | RowDropped, rejected: EncodedConversation | RowDropped
    ) -> ProcessedRow | RowDropped:
        for item in (chosen, rejected):
            if isinstance(item, RowDropped):
                return item
        try:
            return self.process_pair(cast(EncodedConversation, chosen), cast(EncodedConversation, rejected))
        except RowDropped as reason:
            return reason


def with_rejected(conversation: Conversation) -> Conversation:
    """Return the conversation with its worse ending."""
    worse = (conversation.rejected,) if conversation.rejected else ()
    return replace(conversation, messages=(*conversation.messages[:-1], *worse))


def split_prompt(encoded: EncodedConversation) -> tuple[list[int], list[int]]:
    """Return the ids before the last answer, and those of that answer."""
    *history, last = encoded.turns
    if last.message is None:
        raise RowDropped("no answer at the end")
    return [number for turn in history for number in turn.source + turn.target] + last.source, last.target


def label_answer(prompt: list[int], answer: list[int]) -> list[int]:
    """Learn the answer, not the prompt."""
    return [IGNORE_INDEX] * len(prompt) + answer
