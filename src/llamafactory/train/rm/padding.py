"""Padding that plain transformers can tell from the end of an answer.

We read a score at the last token by length. Plain transformers looks for the last token that is not the padding token,
so where a tokenizer pads with its end token, it would read the score of such a model one token too early, without a
word (huggingface/transformers#35352). So a reward model is saved with another padding token.
"""

from collections.abc import Collection
from typing import Any

from torch import nn

from ...extras.logging import get_logger


logger = get_logger(__name__)

FITTING = ("pad", "endoftext", "unused", "reserved", "unk")
"""What the names of tokens that stand in no dialogue are like; the earlier, the better."""


def separate_padding(tokenizer: Any, model: nn.Module, stop_ids: Collection[int]) -> None:
    """Give tokenizer and model a padding token that ends no answer; a second call changes nothing."""
    ends = {tokenizer.eos_token_id, *stop_ids}
    if tokenizer.pad_token_id in ends:
        token = find_padding(tokenizer, ends | {tokenizer.bos_token_id})
        if token is None:
            logger.warning(
                "This tokenizer has no token but the end token %r to pad with: score one answer at a time when you "
                "load the result with plain transformers.",
                tokenizer.pad_token,
            )
        else:
            logger.info("Padding with %r: the end token %r must be seen as real.", token, tokenizer.pad_token)
            tokenizer.pad_token = token
    config: Any = model.config
    config.get_text_config().pad_token_id = tokenizer.pad_token_id


def find_padding(tokenizer: Any, taken: Collection[int | None]) -> str | None:
    """Return a control token that is not taken; one that is called so first."""
    free = [
        str(token)
        for number, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and number not in taken
    ]
    ranked = sorted(free, key=lambda text: next((r for r, word in enumerate(FITTING) if word in text.lower()), 99))
    return ranked[0] if ranked else None
