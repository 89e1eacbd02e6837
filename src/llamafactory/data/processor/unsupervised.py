"""Rows for prediction: the prompt is the input, the answer is kept aside as labels."""

from dataclasses import dataclass

from ..rendering import EncodedConversation
from .processor_utils import DatasetProcessor, ProcessedRow, infer_seqlen


@dataclass(frozen=True)
class UnsupervisedDatasetProcessor(DatasetProcessor):
    """input_ids end where the model starts to write; labels are the ids of the answer, [] when there is none."""

    def process_one(self, encoded: EncodedConversation) -> ProcessedRow:
        """Split the row before its last answer."""
        *history, last = encoded.turns
        prompt = [number for turn in history for number in turn.source + turn.target] + last.source
        prompt_len, answer_len = infer_seqlen(len(prompt), len(last.target), self.data_args.cutoff_len)
        is_truncated = prompt_len < len(prompt) or answer_len < len(last.target)
        return ProcessedRow(prompt[:prompt_len], last.target[:answer_len], 0, is_truncated)
