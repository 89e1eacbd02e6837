"""Mismatched answers for KTO: every prompt also gets an answer that belongs to another row.

The pairing goes over the whole dataset, not over a batch, so that it always finds another row: in odd batches, in a
last batch of one row and at one row per device.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..extras.constants import IGNORE_INDEX
from ..extras.errors import UserError
from .lengths import SequenceLengths, column_lengths, prompt_lengths
from .processor.processor_utils import infer_seqlen


class MismatchedRows:
    """A dataset of feedback rows, each with `kl_input_ids` and `kl_labels`: its prompt, the answer of the next row."""

    def __init__(self, rows: Any, cutoff_len: int) -> None:
        if len(rows) < 2:
            raise UserError(
                f"Stage kto compares every answer with one of another row, but the dataset has {len(rows)} row; give "
                "it at least 2."
            )
        self.rows = rows
        self.cutoff_len = cutoff_len

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = dict(self.rows[index])
        ids, labels = mismatch(row, self.rows[(index + 1) % len(self)], self.cutoff_len)
        return {**row, "kl_input_ids": ids, "kl_labels": labels}

    def sequence_lengths(self) -> SequenceLengths:
        """Return the tokens of each row and of its mismatched answer."""
        import numpy as np

        own, prompts = column_lengths(self.rows), prompt_lengths(self.rows)
        mismatched = np.minimum(prompts + np.roll(own - prompts, -1), self.cutoff_len)
        return SequenceLengths({"": own, "kl_": mismatched})


def mismatch(
    row: Mapping[str, Sequence[int]], other: Mapping[str, Sequence[int]], cutoff_len: int
) -> tuple[list[int], list[int]]:
    """Return ids and labels of one row's prompt with the other's answer."""
    prompt, answer = row["input_ids"][: prompt_len(row)], other["input_ids"][prompt_len(other) :]
    kept_prompt, kept_answer = infer_seqlen(len(prompt), len(answer), cutoff_len)
    prompt, answer = list(prompt[:kept_prompt]), list(answer[:kept_answer])
    return prompt + answer, [IGNORE_INDEX] * len(prompt) + answer


def prompt_len(row: Mapping[str, Sequence[int]]) -> int:
    """Count the tokens before the answer."""
    return next((place for place, label in enumerate(row["labels"]) if label != IGNORE_INDEX), len(row["labels"]))
