"""How far a run is, from trainer_log.jsonl: read at a bounded cost however long it has grown."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...extras.constants import TRAINER_LOG
from .files import read_tail


Curve = list[tuple[int, float]]

CURVES = (
    *("loss", "eval_loss", "predict_loss", "reward", "accuracy"),
    *("rewards/margins", "rewards/chosen", "rewards/rejected", "kl", "entropy", "grad_norm", "lr"),
)
TAIL_BYTES = 32_768
CURVE_BYTES = 4_000_000
"""A longer log is read in pieces that lie evenly over it, the first and the last among them."""
NUM_PIECES = 200


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What the newest lines of the log say."""

    step: int | None = None
    total_steps: int | None = None
    percentage: float | None = None
    elapsed: str = ""
    remaining: str = ""
    tokens_per_second: float | None = None
    total_tokens: int | None = None
    memory_gib: float | None = None
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    """The newest value of every curve, and the epoch."""


def read_progress(run_dir: Path) -> Progress:
    """Read the end of the log; a line that is still being written is left for the next time."""
    metrics: dict[str, float] = {}
    newest: dict[str, Any] = {}
    for line in parse_lines(read_tail(run_dir / TRAINER_LOG, TAIL_BYTES)):
        newest = {**newest, **line}
        metrics.update({key: number for key in (*CURVES, "epoch") if (number := _number(line.get(key))) is not None})
    step, total = _whole(newest.get("current_steps")), _whole(newest.get("total_steps"))
    return Progress(
        step=step,
        total_steps=total,
        percentage=_number(newest.get("percentage")),
        elapsed=str(newest.get("elapsed_time", "")),
        remaining=str(newest.get("remaining_time", "")),
        tokens_per_second=_number(newest.get("throughput")),
        total_tokens=_whole(newest.get("total_tokens")),
        memory_gib=_number(newest.get("vram_reserved")),
        metrics=metrics,
    )


def read_curves(run_dir: Path, names: tuple[str, ...] = CURVES) -> dict[str, Curve]:
    """Return every curve that the log holds points of, in the order of steps."""
    curves: dict[str, Curve] = {}
    for line in parse_lines(_read_evenly(run_dir / TRAINER_LOG)):
        step = _whole(line.get("current_steps"))
        for name in names if step is not None else ():
            value = _number(line.get(name))
            if value is not None:
                curves.setdefault(name, []).append((step or 0, value))
    return curves


def parse_lines(text: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a text, and nothing for a line that is not (yet) one."""
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def _read_evenly(path: Path) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size <= CURVE_BYTES:
                file.seek(0)
                return file.read().decode("utf-8", errors="replace")
            length = CURVE_BYTES // NUM_PIECES
            pieces: list[bytes] = []
            for index in range(NUM_PIECES):
                file.seek(index * (size - length) // (NUM_PIECES - 1))
                pieces.append(file.read(length))
    except OSError:
        return ""
    return b"\n".join(pieces).decode("utf-8", errors="replace")  # lines that a cut went through are no JSON


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
