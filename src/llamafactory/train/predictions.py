"""Predictions on disk as they are made, so that a stopped run loses none of them.

Each process appends its records to a file of its own. The same run started again finds them there, predicts only the
rows that are left, and puts all of them together in the order of the rows. A record counts only for the same
configuration and for a row with the same prompt.
"""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..extras.constants import PREDICTIONS
from ..extras.logging import get_logger
from .checkpoints import write_durably
from .stage import RunArguments


logger = get_logger(__name__)

PARTIAL = "partial_predictions"
"""Files begin with this; they are deleted once the whole file is there."""

Record = dict[str, Any]
Gather = Callable[[list[Any]], list[Any]]
"""Puts the items of all processes into one list, on all of them."""


class PredictionStore:
    """The records of one dataset; `run` tells one run's predictions from another's (see `describe_run`)."""

    def __init__(self, folder: Path, dataset_name: str, run: str, rank: int) -> None:
        self._folder, self._rank = folder, rank
        self._key = {"dataset": dataset_name, "run": hashlib.sha256(run.encode()).hexdigest()[:16]}
        self._done: dict[int, Record] = {}
        self._order: list[int] = []
        self._digests: dict[int, str] = {}

    def open(self, rows: Any, gather: Gather) -> list[int]:
        """Read what an earlier run left and return the numbers of the rows to predict, longest prompt first."""
        prompts = [row["input_ids"] if "input_ids" in row else row["chosen_input_ids"] for row in rows]
        self._done = found = dict(gather([*self._read(prompts)]))
        if found:
            logger.info(f"{len(found)} of {len(prompts)} predictions are there already; the rest is predicted.")
        left = (number for number in range(len(prompts)) if number not in found)
        self._order = sorted(left, key=lambda number: -len(prompts[number]))
        self._digests = {number: digest_prompt(prompts[number]) for number in self._order}
        return self._order

    def add(self, indices: Sequence[int], records: Sequence[Record]) -> None:
        """Append records; `indices` are places in what `open` returned."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"{PARTIAL}_{self._rank}.jsonl").open("a", encoding="utf-8") as file:
            for index, record in zip(indices, records, strict=True):
                number = self._order[index]
                line = {**self._key, "row": number, "prompt": self._digests[number], "record": record}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def complete(self, records: Sequence[Record]) -> list[Record]:
        """Return the records of all rows in row order, given the new ones in the order of `open`."""
        everything = self._done | dict(zip(self._order, records, strict=True))
        return [everything[number] for number in sorted(everything)]

    def _read(self, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[int, Record]]:
        """One process reads for all: the earlier run may have had another number of them."""
        paths = sorted(self._folder.glob(f"{PARTIAL}_*.jsonl")) if self._rank == 0 else []
        for line in (_parse(text) for path in paths for text in path.read_text(encoding="utf-8").split("\n")):
            if not all(line.get(name) == value for name, value in self._key.items()):
                continue
            number = line["row"]
            if number < len(prompts) and line["prompt"] == digest_prompt(prompts[number]):
                yield number, line["record"]


def publish_predictions(folder: Path, records: Sequence[Record]) -> None:
    """Write all records, then delete the partial files."""
    write_predictions(folder / PREDICTIONS, records)
    forget_predictions(folder)


def write_predictions(path: Path, records: Sequence[Record]) -> None:
    """Write one record a line."""
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    write_durably(path, "\n".join(lines) + "\n")


def forget_predictions(folder: Path) -> None:
    """Delete the partial files of a run whose model has changed or whose predictions are complete."""
    for path in folder.glob(f"{PARTIAL}_*.jsonl"):
        path.unlink(missing_ok=True)


def describe_run(arguments: RunArguments) -> str:
    """Say what decides the predictions of a run: its settings, and which weights it loads."""
    training, model = arguments.training, arguments.model
    settings = [repr(group) for group in (model, arguments.data, arguments.finetuning, arguments.generating)]
    beams, length = training.generation_num_beams, training.generation_max_length
    folders = [Path(name).expanduser() for name in (model.model_name_or_path, *(model.adapter_name_or_path or ()))]
    weights = [file.stat() for folder in folders for file in sorted(folder.glob("*.safetensors"))]
    stamps = [f"{stat.st_size} {stat.st_mtime_ns}" for stat in weights]
    return "\n".join([*settings, f"{beams} {length} {training.bf16} {training.fp16}", *stamps])


def digest_prompt(ids: Sequence[int]) -> str:
    """Digest the ids of a prompt."""
    return hashlib.sha256(array("q", ids).tobytes()).hexdigest()[:16]


def _parse(text: str) -> Mapping[str, Any]:
    """Read one line; the last one may have been cut off when the run was killed."""
    try:
        line = json.loads(text)
    except ValueError:
        return {}
    return line if isinstance(line, dict) else {}
