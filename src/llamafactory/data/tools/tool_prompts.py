"""The words around a list of tools, kept in prompts.toml."""

import functools
import tomllib
from collections.abc import Sequence
from pathlib import Path

from ..pieces import Piece, own, typed


FILE = Path(__file__).parent / "prompts.toml"


@functools.cache
def load_prompts() -> dict[str, str]:
    """Return the prompts by name."""
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


def fill_prompt(prompt: str, listed: Sequence[Piece]) -> list[Piece]:
    """Put the list of tools into its place."""
    before, after = prompt.split("{tools}")
    return [own(before), *listed, own(after)]


def join_texts(texts: Sequence[str], joint: str) -> list[Piece]:
    """Lay somebody's texts in a row, with our joint between them."""
    return [piece for text in texts for piece in (own(joint), typed(text))][1:]
