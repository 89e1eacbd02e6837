"""Which rows of the data a batch was made of: looked up by their tokens, once a run has been stopped."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.batch import documents_of
from ..extras.constants import IGNORE_INDEX
from .objective import Batch


class Document(NamedTuple):
    """A dialogue or text of a batch, without padding."""

    ids: tuple[int, ...]
    prompt: tuple[int, ...]
    """The tokens before the first one that is learned."""


def split_documents(batch: Batch) -> list[Document]:
    """Return the documents of a batch in reading order, padded or flat; those that share tokens are put together."""
    ids, labels = batch["input_ids"], batch.get("labels")
    mask = batch.get("attention_mask")
    is_token = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else torch.ones_like(ids, dtype=torch.bool)
    if "shared_tokens" in batch:
        order, numbers = batch["shared_tokens"], _numbers_between(batch["cu_seq_lens_q"])
        ids, is_token = ids.flatten()[order], is_token.flatten()[order]
        labels = None if labels is None else labels.flatten()[order]
    else:
        numbers = documents_of(batch)
    return [
        _document(ids[chosen], None if labels is None else labels[chosen])
        for chosen in (is_token & (numbers == number) for number in numbers[is_token].unique())
    ]


def find_rows(documents: Sequence[Document], dataset: Any) -> Mapping[int, int]:
    """Look the documents up in the dataset: place in the list -> row number.

    A row is a document, or several in one (packed), a pair, or a prompt that an answer was written to.
    """
    whole: dict[tuple[int, ...], list[int]] = {}
    prompts: dict[tuple[int, ...], list[int]] = {}
    for place, document in enumerate(documents):
        whole.setdefault(document.ids, []).append(place)
        prompts.setdefault(document.prompt, []).append(place)
    found: dict[int, int] = {}
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        return found
    for number in range(len(dataset)):
        for ids in _sequences_of(dataset[number]):
            for place in whole.get(ids) or prompts.get(ids) or ():
                found.setdefault(place, number)
        if len(found) == len(documents):
            break
    return found


def _document(ids: Tensor, labels: Tensor | None) -> Document:
    all_ids = tuple(ids.tolist())
    learned = [] if labels is None else (labels != IGNORE_INDEX).nonzero().flatten().tolist()
    return Document(all_ids, all_ids[: learned[0]] if learned else all_ids)


def _numbers_between(bounds: Tensor) -> Tensor:
    sizes = bounds.diff().long()
    return torch.arange(sizes.numel(), device=sizes.device).repeat_interleave(sizes)


def _sequences_of(row: Mapping[str, Any]) -> Iterator[tuple[int, ...]]:
    """Return the token sequences of a row; those of a packed one apart."""
    for name, ids in row.items():
        if not name.endswith("input_ids"):
            continue
        positions = row.get("position_ids")
        starts = [0] if positions is None else [place for place, position in enumerate(positions) if position == 0]
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            yield tuple(ids[start:end])
