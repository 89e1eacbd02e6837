"""The tokens a template needs from a tokenizer: end-of-text, padding and stop words; nothing grows silently."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..extras.logging import get_logger


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = get_logger(__name__)

FALLBACK_EOS = "<|endoftext|>"


def fill_special_tokens(
    tokenizer: "PreTrainedTokenizerBase", eos_token: str | None = None, stop_words: Sequence[str] = ()
) -> None:
    """Set eos (when given or missing) and pad (when missing), and make stop words special tokens.

    A token that is new to the vocabulary is named in a warning: the model's embedding needs a row for it.
    """
    vocabulary = tokenizer.get_vocab()
    eos = eos_token or str(tokenizer.eos_token or FALLBACK_EOS)
    if tokenizer.eos_token != eos:
        logger.info(f"The end-of-text token is {eos!r} now; it was {tokenizer.eos_token!r}.")
        tokenizer.add_special_tokens({"eos_token": eos})
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    special = set(tokenizer.all_special_tokens)
    special.update(str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special)
    words = [word for word in stop_words if word not in special]
    if words:
        tokenizer.add_special_tokens({"extra_special_tokens": words}, replace_extra_special_tokens=False)

    added = [word for word in (eos, *words) if word not in vocabulary]
    if added:
        logger.warning(
            f"The template needs {', '.join(added)}, new to this tokenizer: its vocabulary has grown "
            f"from {len(vocabulary)} to {len(tokenizer)}. If the model's embedding has fewer rows, resize_vocab: true "
            "gives it more."
        )


def adds_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Tell whether the tokenizer itself puts its begin-of-text token in front of plain text."""
    if tokenizer.bos_token_id is None:
        return False
    ids = tokenizer("a", add_special_tokens=True)["input_ids"]
    return isinstance(ids, list) and ids[:1] == [tokenizer.bos_token_id]
