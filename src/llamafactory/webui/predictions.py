"""Predictions of a run, a page at a time: the file may be large, and only the rows that are shown are read whole."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

from ..extras.constants import PREDICTIONS


CHUNK = 1 << 20
MAX_CELL = 4000
"""Characters of one cell; the file has the rest."""
MAX_LINE = 1 << 24
"""Bytes; a longer line is no prediction."""
COLUMNS = ("prompt", "predict", "label")


@dataclass(frozen=True)
class Page:
    """Some rows, and how many there are."""

    rows: tuple[Mapping[str, Any], ...]
    first: int
    total: int


def predictions_file(run_dir: Path) -> Path | None:
    """Return the file of a run's predictions, or None."""
    path = run_dir / PREDICTIONS
    return path if path.is_file() else None


def read_page(path: Path, number: int, size: int) -> Page:
    """Return page `number`, from 0; one behind the end is the last."""
    total = count_lines(path)
    size = min(max(size, 1), 100)
    last = max((total - 1) // size, 0)
    first = min(max(number, 0), last) * size
    with path.open("rb") as file:
        rows = tuple(_parse(line) for line in islice(_filled(file), first, first + size))
    return Page(rows, first, total)


def count_lines(path: Path) -> int:
    """Count the rows of a file without decoding them."""
    total = 0
    end = b"\n"
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            total += chunk.count(b"\n")
            end = chunk[-1:]
    return total + (end != b"\n")


def show_page(page: Page, labels: Mapping[str, str]) -> str:
    """Return the rows as an HTML table, prompt, prediction and label side by side."""
    if not page.rows:
        return f'<p class="empty">{escape(labels["no_predictions"])}</p>'
    heads = "".join(f"<th>{escape(labels[name])}</th>" for name in COLUMNS)
    body = "".join(
        f"<tr><td>{page.first + place:,}</td>"
        + "".join(f"<td>{_cell(row.get(name))}</td>" for name in COLUMNS)
        + "</tr>"
        for place, row in enumerate(page.rows, 1)
    )
    return (
        f'<div class="scroll"><table class="predictions"><thead><tr><th>#</th>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _filled(file: Any) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE):
        yield line


def _parse(line: bytes) -> Mapping[str, Any]:
    """Return a row; what is not one (a line still being written) is shown as it stands."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    return row if isinstance(row, dict) else {"prompt": line.decode(errors="replace")}


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) if value is not None else ""
    cut = text if len(text) <= MAX_CELL else f"{text[:MAX_CELL]} ..."
    return f"<pre>{escape(cut)}</pre>"
