"""Pairs of answers to one prompt, computed with the prompt once.

The first answers stand in a flat row with their prompts; of a second answer only the tokens behind the common
beginning follow, with the positions that they have in their own dialogue. Linear layers, norms and the head see the
shared tokens once; inside the attention alone every dialogue is put together again, by an index of tokens. Only the
attention "llamafactory" knows that index: any other one would hide the prompt from the second answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from ..extras.constants import IGNORE_INDEX
from .batch import TokenBatch
from .collator import PackedCollator
from .packing import join_documents


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class SharedPrefixCollator:
    """Makes a flat batch of 2 N dialogues: N of them, then N others that begin like them, in the same order.

    It stands where FlatCollator stands, and its batch numbers the dialogues alike (`documents_of`).
    """

    lays_flat: ClassVar[bool] = True

    tokenizer: "PreTrainedTokenizerBase"
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> TokenBatch:
        """Return what FlatCollator does, the number of each token's dialogue, and the index for the attention."""
        import torch

        num_pairs = len(rows) // 2
        first, second = rows[:num_pairs], rows[num_pairs:]
        shared = [shared_length(one, other) for one, other in zip(first, second, strict=True)]
        rests = [rest_of(row, length) for row, length in zip(second, shared, strict=True)]
        flat = cast(dict[str, Any], join_documents([*first, *rests]))
        batch = PackedCollator(self.tokenizer, self.pad_to_multiple_of)([flat])

        width = batch["input_ids"].shape[1]
        sizes = [len(row["input_ids"]) for row in [*first, *rests]]
        sizes += [width - sum(sizes)] if width > sum(sizes) else []
        spans = torch.arange(width).split(sizes)
        shared += [0] * (len(sizes) - len(rows))  # the padding
        dialogues = [*spans[:num_pairs]]
        for number, length in enumerate(shared):
            dialogues.append(torch.cat([spans[number % num_pairs][:length], spans[num_pairs + number]]))
        lengths = torch.tensor([len(dialogue) for dialogue in dialogues])
        bounds = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        own = [bounds[number + 1] - size + torch.arange(size) for number, size in enumerate(sizes)]
        return {
            **batch,
            "documents": torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).unsqueeze(0),
            "shared_tokens": torch.cat(dialogues),
            "shared_places": torch.cat(own),
            "cu_seq_lens_q": bounds.to(torch.int32),
            "cu_seq_lens_k": bounds.to(torch.int32),
            "max_length_q": int(lengths.max()),
            "max_length_k": int(lengths.max()),
        }


def shared_length(one: Mapping[str, Any], other: Mapping[str, Any]) -> int:
    """Return how many tokens at the beginning can be computed once: equal ones that are not learned, but the last.

    The last equal token stands in both, because each answer's first token is predicted from it.
    """
    equal = 0
    for ids, labels in zip(
        zip(one["input_ids"], other["input_ids"], strict=False),
        zip(one["labels"], other["labels"], strict=False),
        strict=False,
    ):
        if ids[0] != ids[1] or labels != (IGNORE_INDEX, IGNORE_INDEX):
            break
        equal += 1
    return max(equal - 1, 0)


def rest_of(row: Mapping[str, Any], length: int) -> dict[str, list[int]]:
    """Return a dialogue without its first tokens; the others keep their positions."""
    return {
        "input_ids": list(row["input_ids"][length:]),
        "labels": list(row["labels"][length:]),
        "position_ids": list(range(length, len(row["input_ids"]))),
    }
