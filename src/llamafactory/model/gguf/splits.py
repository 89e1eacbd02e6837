"""The pre-tokenizers of GGUF files by name: made from a name, and found for a tokenizer by what it does to a text."""

import functools
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Regex, pre_tokenizers


if TYPE_CHECKING:
    from tokenizers import Tokenizer

SAMPLES = (
    "Don't WE'LL I'd say: 12345 or 1,234.5? camelCaseABCdef XMLHttp a1b22c333",
    "  two\n\n three   \n\t four\r\n(x)[y] {z}/n //p \\n `q`_r_ #s $5 %6 end  ",
    "\u65e5\u672c\u8a9e\u306e\u6587\u5b57 \u4f60\u597d123 \ud55c\uad6d\uc5b4",
    "\u0939\u093f\u0928\u094d\u0926\u0940 caf\u00e9 cafe\u0301 \u00c9T\u00c9 \u01c5 \U0001f642\U0001f642!",
)
"""Texts that every two rows of the table cut in different ways."""


@dataclass(frozen=True)
class Split:
    """One row of the table."""

    names: tuple[str, ...]
    patterns: tuple[str, ...]
    takes_whole: bool = False
    composes: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """Make it: one cut for each pattern, then bytes."""
        cuts: list[Any] = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.patterns]
        return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


@functools.cache
def load_splits() -> tuple[Split, ...]:
    """Read the table."""
    table = tomllib.loads(Path(__file__).with_name("splits.toml").read_text(encoding="utf-8"))
    return tuple(
        Split(tuple(row["names"]), tuple(row["patterns"]), row.get("takes_whole", False), row.get("composes", False))
        for row in table["splits"]
    )


def named_split(name: str) -> Split | None:
    """Return the row of a name that a file gives."""
    return next((split for split in load_splits() if name in split.names), None)


def find_split(tokenizer: "Tokenizer") -> Split | None:
    """Return the row that cuts the samples as this tokenizer does; None where no row does."""
    own: Any = tokenizer.pre_tokenizer
    if own is None:
        return None
    takes_whole = bool(json.loads(tokenizer.to_str())["model"].get("ignore_merges", False))
    expected = _cut(own)
    found = [split for split in load_splits() if _cut(split.pre_tokenizer()) == expected]
    return next((split for split in found if split.takes_whole == takes_whole), found[0] if found else None)


def _cut(pre_tokenizer: Any) -> list[list[str]]:
    return [[word for word, _ in pre_tokenizer.pre_tokenize_str(text)] for text in SAMPLES]
