"""Rows for prediction: the prompt is the input, the answer is kept aside as labels."""

from dataclasses import dataclass

from ..rendering import EncodedConversation
from .processor_utils import DatasetProcessor, ProcessedRow


@dataclass(frozen=True)
class UnsupervisedDatasetProcessor(DatasetProcessor):
    """input_ids end where the model starts to write; labels are the ids of the answer, [] when there is none.

    The answer is not a part of the input, so it takes no room from the prompt. A prompt that is too long is cut in
    front: without its end, where the turn of the model is opened, the model would go on with the user's words.
    """

    def process_one(self, encoded: EncodedConversation) -> ProcessedRow:
        """Split the row before its last answer."""
        *history, last = encoded.turns
        prompt = [number for turn in history for number in turn.source + turn.target] + last.source
        cutoff_len = self.data_args.cutoff_len
        is_truncated = max(len(prompt), len(last.target)) > cutoff_len
        return ProcessedRow(prompt[-cutoff_len:], last.target[:cutoff_len], 0, is_truncated)
