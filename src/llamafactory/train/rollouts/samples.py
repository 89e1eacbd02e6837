"""A few answers of every rollout on disk, to read along what the policy learns to say."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoints import write_durably


SAMPLES = "rollout_samples.jsonl"
NUM_SAMPLES = 4  # of each rollout


@dataclass
class SampleLog:
    """One JSON object per line; the first line that a process writes drops those of the steps that now come again."""

    folder: Path
    _is_open: bool = field(default=False, init=False)

    def write(self, step: int, records: Iterable[Mapping[str, Any]]) -> None:
        """Add the records of the rollout that was made after `step` steps."""
        path = self.folder / SAMPLES
        if not self._is_open:
            self.folder.mkdir(parents=True, exist_ok=True)
            lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
            kept = [line for line in lines if _step_of(line) < step]
            write_durably(path, "".join(f"{line}\n" for line in kept))
            self._is_open = True
        with path.open("a", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps({"step": step, **record}, ensure_ascii=False) + "\n")


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # half a line, left by a process that was killed
