"""What a preparation depends on, as digests: any change gives another key, the same again gives the same."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..extras.version import VERSION
from .encoding import back_end_of


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Arguments that decide which rows are read, how fast and where to, but not what a row becomes.
NEUTRAL = frozenset(
    {
        "buffer_size",
        "data_shared_file_system",
        "dataset",
        "dataset_dir",
        "eval_dataset",
        "eval_num_beams",
        "eval_on_each_dataset",
        "ignore_pad_token_for_loss",
        "interleave_probs",
        "max_batch_tokens",
        "mix_strategy",
        "overwrite_cache",
        "padding_free",
        "preprocessing_batch_size",
        "preprocessing_num_workers",
        "streaming",
        "template",
        "tokenized_path",
        "val_size",
    }
)


def digest(value: object) -> str:
    """Hash anything that JSON can write; other things by their repr."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=repr)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def options_of(data_args: object) -> dict[str, Any]:
    """Return the data arguments that change rows."""
    values: Mapping[str, Any] = (
        asdict(data_args) if is_dataclass(data_args) and not isinstance(data_args, type) else vars(data_args)
    )
    return {name: value for name, value in sorted(values.items()) if name not in NEUTRAL}


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Hash what a tokenizer does to text: its vocabulary, its steps and its added tokens."""
    parts: list[object] = [
        type(tokenizer).__name__,
        tokenizer.special_tokens_map,
        tokenizer.chat_template,
        [(number, repr(token)) for number, token in sorted(tokenizer.added_tokens_decoder.items())],
    ]
    if tokenizer.is_fast:
        # Truncation, padding and added tokens stand before the steps; the first two change from call to call. Quotes
        # inside of a string are escaped, so the key is found where it is meant. Reading the JSON would take 0.1 s.
        state = back_end_of(tokenizer).to_str()
        parts.append(state.partition('"normalizer":')[2] or state)
    else:
        parts.append(sorted(tokenizer.get_vocab().items()))
    return digest(parts)


@cache
def code_digest() -> str:
    """Hash the version and the source of this package: a mended renderer must not meet rows of the broken one."""
    total = hashlib.blake2b(VERSION.encode(), digest_size=16)
    folder = Path(__file__).parent
    for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.toml")]):
        total.update(path.read_bytes())
    return total.hexdigest()
