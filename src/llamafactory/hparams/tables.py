"""Reads the TOML tables that lie beside the code."""

import functools
import tomllib
from pathlib import Path
from typing import Any


@functools.cache
def load_table(name: str) -> dict[str, Any]:
    """Read one table of this package, such as "legacy.toml"."""
    return tomllib.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))
