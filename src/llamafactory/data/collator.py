"""Rows of different lengths become tensors (batch.py). Padding is told by length, never by a token's id."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, cast

from ..extras.constants import IGNORE_INDEX
from .batch import TokenBatch, document_numbers, sequence_bounds
from .packing import LOSS_WEIGHTS, join_documents, weights_of


if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

Row: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class PaddingCollator:
    """Pads a batch to its longest row; prediction pads on the left, so that every prompt ends where the model writes.

    A pad token that is also the end token is no problem: the attention mask and the labels follow from the lengths.
    """

    tokenizer: "PreTrainedTokenizerBase"
    label_pad: int = IGNORE_INDEX
    pad_to_multiple_of: int | None = None
    padding_side: Literal["left", "right"] = "right"

    def __call__(self, rows: Sequence[Row]) -> TokenBatch:
        """Return input_ids, attention_mask and labels; in prediction, labels have a length of their own."""
        batch = {
            "input_ids": self._pad([row["input_ids"] for row in rows], pad_token_of(self.tokenizer)),
            "attention_mask": self._pad([[1] * len(row["input_ids"]) for row in rows], 0),
        }
        if "labels" in rows[0]:
            batch["labels"] = self._pad([row["labels"] for row in rows], self.label_pad)
        if any(row.get(LOSS_WEIGHTS) is not None for row in rows):
            batch[LOSS_WEIGHTS] = self._pad([weights_of(row) for row in rows], 0.0)
        return batch

    def _pad(self, rows: Sequence[Sequence[float]], value: float) -> "torch.Tensor":
        return pad_rows(rows, value, self.pad_to_multiple_of, self.padding_side)


@dataclass(frozen=True)
class PackedCollator:
    """Pads packed rows to the longest of the batch, and restarts the positions in the padding too.

    A row that was not packed is a row of one document.
    """

    tokenizer: "PreTrainedTokenizerBase"
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: Sequence[Row]) -> TokenBatch:
        """Return input_ids, attention_mask, labels and position_ids."""
        packed = [join_documents([row]) for row in rows]
        padded = PaddingCollator(self.tokenizer, pad_to_multiple_of=self.pad_to_multiple_of)(
            [{name: value for name, value in row.items() if name != "position_ids"} for row in packed]
        )
        width = padded["input_ids"].shape[1]
        positions = [[*row["position_ids"], *range(width - len(row["position_ids"]))] for row in packed]
        return {**padded, "position_ids": pad_rows(positions, 0)}


@dataclass(frozen=True)
class FlatCollator:
    """Lays the rows of a batch end to end in one row, so that nothing is padded; positions tell them apart.

    Kernels that take bounds (ours, flash attention) then compute real tokens only. Other kernels build a mask that
    grows with the square of the whole batch, and need no bounds.
    """

    lays_flat: ClassVar[bool] = True
    """A batch takes as many tokens as its rows have; token budgets ask for it."""

    tokenizer: "PreTrainedTokenizerBase"
    pad_to_multiple_of: int | None = None
    with_bounds: bool = True
    """Adds the bounds of documents; a model that takes no further arguments must not get them."""

    def __call__(self, rows: Sequence[Row]) -> TokenBatch:
        """Return input_ids, attention_mask, labels and position_ids, all of one row, and the bounds (batch.py)."""
        flat = cast(dict[str, Any], join_documents(rows))
        batch = PackedCollator(self.tokenizer, self.pad_to_multiple_of)([flat])
        return {**batch, **sequence_bounds(batch["position_ids"])} if self.with_bounds else batch


@dataclass(frozen=True)
class MaskedCollator:
    """Packed rows with a mask that is added to the scores, for a model that does not tell documents by positions.

    The mask has T x T numbers a row; use it only where PackedCollator cannot be.
    """

    tokenizer: "PreTrainedTokenizerBase"
    dtype: "torch.dtype"
    """The number format that the model computes attention in."""
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: Sequence[Row]) -> TokenBatch:
        """Return what PackedCollator does, with attention_mask [B, 1, T, T]."""
        batch = PackedCollator(self.tokenizer, self.pad_to_multiple_of)(rows)
        numbers = document_numbers(batch["position_ids"]) * batch["attention_mask"]
        batch["attention_mask"] = prepare_4d_attention_mask(numbers, self.dtype)
        return batch


def prepare_4d_attention_mask(document_numbers_BT: "torch.Tensor", dtype: "torch.dtype") -> "torch.Tensor":
    """Return [B, 1, T, T] with 0 where a token may look and the lowest number elsewhere.

    Tokens look back within their own document; number 0 is padding, which nothing looks at.
    """
    import torch

    length = document_numbers_BT.shape[1]
    is_same = document_numbers_BT.unsqueeze(2) == document_numbers_BT.unsqueeze(1)
    is_token = (document_numbers_BT != 0).unsqueeze(1)
    is_past = torch.ones((length, length), dtype=torch.bool, device=document_numbers_BT.device).tril()
    mask = torch.zeros(is_same.shape, dtype=dtype, device=document_numbers_BT.device)
    return mask.masked_fill_(~(is_same & is_token & is_past), torch.finfo(dtype).min).unsqueeze(1)


def pad_rows(
    rows: Sequence[Sequence[float]],
    value: float,
    multiple: int | None = None,
    side: Literal["left", "right"] = "right",
) -> "torch.Tensor":
    """Fill rows up to the longest one, or to the next multiple above it; a float makes a tensor of floats."""
    import torch

    step = multiple or 1
    width = -(-max(len(row) for row in rows) // step) * step
    dtype = torch.float32 if isinstance(value, float) else torch.int64
    padded = torch.full((len(rows), width), value, dtype=dtype)
    for index, row in enumerate(rows):
        start = width - len(row) if side == "left" else 0
        padded[index, start : start + len(row)] = torch.as_tensor(row, dtype=dtype)
    return padded


def pad_token_of(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the id that fills rows; get_template_and_fix_tokenizer has seen to it that there is one."""
    return cast(int, tokenizer.pad_token_id)


@dataclass(frozen=True)
class PairwiseDataCollatorWithPadding:
    """Pairs become one batch: the better answers first, the worse ones after them, in the same order."""

    tokenizer: "PreTrainedTokenizerBase"
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: Sequence[Row]) -> TokenBatch:
        """Return input_ids, attention_mask and labels of twice as many rows."""
        both = [part(row, side) for side in ("chosen_", "rejected_") for row in rows]
        return PaddingCollator(self.tokenizer, pad_to_multiple_of=self.pad_to_multiple_of)(both)


@dataclass(frozen=True)
class KTODataCollatorWithPadding:
    """Marked answers, and the mismatched ones that measure the drift, padded each to their own longest row."""

    tokenizer: "PreTrainedTokenizerBase"
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: Sequence[Row]) -> TokenBatch:
        """Return the batch, the mismatched batch under names that begin with kl_, and kto_tags (bool)."""
        import torch

        pad = PaddingCollator(self.tokenizer, pad_to_multiple_of=self.pad_to_multiple_of)
        mismatched = pad([part(row, "kl_") for row in rows])
        batch = pad([part(row, "") for row in rows]) | {f"kl_{name}": value for name, value in mismatched.items()}
        return batch | {"kto_tags": torch.tensor([bool(row["kto_tags"]) for row in rows])}


def part(row: Row, prefix: str) -> Row:
    """Return the ids and labels that stand under a prefix."""
    return {"input_ids": row[f"{prefix}input_ids"], "labels": row[f"{prefix}labels"]}


MultiModalDataCollatorForSeq2Seq = PaddingCollator
"""The name that the established tool has for it; here without images."""
SFTDataCollatorWith4DAttentionMask = MaskedCollator
"""The name that the established tool has for it."""
