"""Batches: rows of different lengths become tensors. Padding is told by length, never by a token's id."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from ..extras.constants import IGNORE_INDEX


if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PaddingCollator:
    """Pads a batch to its longest row; prediction pads on the left, so that every prompt ends where the model writes.

    A pad token that is also the end token is no problem: the attention mask and the labels follow from the lengths.
    """

    tokenizer: "PreTrainedTokenizerBase"
    label_pad: int = IGNORE_INDEX
    pad_to_multiple_of: int | None = None
    padding_side: Literal["left", "right"] = "right"

    def __call__(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, "torch.Tensor"]:
        """Return input_ids, attention_mask and labels; in prediction, labels have a length of their own."""
        pad_token = cast(int, self.tokenizer.pad_token_id)  # get_template_and_fix_tokenizer has seen to it
        batch = {
            "input_ids": self._pad([row["input_ids"] for row in rows], pad_token),
            "attention_mask": self._pad([[1] * len(row["input_ids"]) for row in rows], 0),
        }
        if "labels" in rows[0]:
            batch["labels"] = self._pad([row["labels"] for row in rows], self.label_pad)
        return batch

    def _pad(self, rows: Sequence[Sequence[int]], value: int) -> "torch.Tensor":
        import torch

        multiple = self.pad_to_multiple_of or 1
        width = -(-max(len(row) for row in rows) // multiple) * multiple
        padded = torch.full((len(rows), width), value, dtype=torch.int64)
        for index, row in enumerate(rows):
            start = width - len(row) if self.padding_side == "left" else 0
            padded[index, start : start + len(row)] = torch.as_tensor(row, dtype=torch.int64)
        return padded
