"""Rows for KTO: an answer and whether it is good. The mismatched answers that measure the drift are in mismatch.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

from ..conversation import Conversation, RowDropped, RowOverlong
from ..rendering import EncodedConversation
from .pairwise import label_answer, split_prompt
from .processor_utils import DatasetProcessor, Learns, ProcessedRow, infer_seqlen


@dataclass(frozen=True)
class FeedbackDatasetProcessor(DatasetProcessor):
    """One answer a row, with its mark in `kto_tags`."""

    learns: ClassVar[Learns] = "marks"

    def process(self, conversations: Sequence[Conversation]) -> list[ProcessedRow | RowDropped]:
        """Return the rows with their marks."""
        rows = super().process(conversations)
        return [
            row if isinstance(row, RowDropped) else row._replace(more={"kto_tags": bool(item.is_good)})
            for row, item in zip(rows, conversations, strict=True)
        ]

    def process_one(self, encoded: EncodedConversation) -> ProcessedRow:
        """Join prompt and answer, cut to cutoff_len."""
        prompt, answer = split_prompt(encoded)
        answer = answer + ([cast(int, self.tokenizer.eos_token_id)] if self.template.efficient_eos else [])
        prompt_len, answer_len = infer_seqlen(len(prompt), len(answer), self.data_args.cutoff_len)
        is_truncated = prompt_len < len(prompt) or answer_len < len(answer)
        prompt, answer = prompt[:prompt_len], answer[:answer_len]
        if not answer:
            raise RowOverlong("nothing to learn within cutoff_len")
        return ProcessedRow(prompt + answer, label_answer(prompt, answer), len(answer), is_truncated)
