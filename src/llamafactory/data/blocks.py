"""Blocks: texts laid end to end and cut every so many tokens, for pre-training.

The blocks, one after the other, are the stream of the texts: nothing is dropped, repeated or overwritten, and the
last block is shorter. A block is cut out when it is asked for.
"""

from collections.abc import Mapping
from typing import Any, cast

from ..extras.logging import get_logger
from .lengths import SequenceLengths, column_lengths


logger = get_logger(__name__)


class TextBlocks:
    """A dataset of blocks over a dataset of texts."""

    def __init__(self, texts: Any, block_len: int) -> None:
        import numpy as np

        self.texts: Any = texts.with_format("numpy") if hasattr(texts, "with_format") else texts
        self.block_len = block_len
        self._bounds = np.concatenate([[0], np.cumsum(column_lengths(texts))])

    def __len__(self) -> int:
        return -(-self.num_tokens // self.block_len)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        import numpy as np

        if not -len(self) <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        start = index % len(self) * self.block_len
        end = min(start + self.block_len, self.num_tokens)
        first, last = np.searchsorted(self._bounds, [start, end - 1], side="right") - 1
        ids: list[int] = []
        for number in range(int(first), int(last) + 1):
            offset = int(self._bounds[number])
            text = cast(Mapping[str, Any], self.texts[number])["input_ids"]
            ids += np.asarray(text[max(start - offset, 0) : end - offset]).tolist()
        return {"input_ids": ids, "labels": list(ids)}

    def sequence_lengths(self) -> SequenceLengths:
        """Return the tokens of each block."""
        import numpy as np

        lengths = np.full(len(self), self.block_len, dtype=np.int64)
        if len(self):
            lengths[-1] = self.num_tokens - (len(self) - 1) * self.block_len
        return SequenceLengths({"": lengths})

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts."""
        return int(self._bounds[-1])


def cut_into_blocks(texts: Any, block_len: int) -> TextBlocks:
    """Cut a dataset of texts and say into how many blocks."""
    blocks = TextBlocks(texts, block_len)
    logger.info(f"{len(texts)} texts of {blocks.num_tokens} tokens are cut into {len(blocks)} rows of {block_len}.")
    return blocks
