"""Which bytes a token stands for, whatever the tokenizer writes them as."""

import functools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
SPACE = "\u2581"  # how SentencePiece writes a space


@functools.cache
def byte_letters() -> Mapping[str, int]:
    """The letters that byte-level BPE writes bytes with: those that print as themselves, others from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


def token_bytes(tokenizer: "PreTrainedTokenizerBase", token: int) -> bytes:
    """Return the bytes of a token; a part of a character has a part of its bytes."""
    name = str(tokenizer.convert_ids_to_tokens(token))
    if token in tokenizer.added_tokens_decoder:
        return name.encode()
    text: str = tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)  # pyright: ignore
    letters = byte_letters()
    if all(letter in letters for letter in name):
        raw = bytes(letters[letter] for letter in name)
        if raw.decode(errors="replace") == text:
            return raw
    if match := BYTE.fullmatch(name):
        return bytes([int(match[1], 16)])
    return name.replace(SPACE, " ").encode() if SPACE in name else text.encode()
