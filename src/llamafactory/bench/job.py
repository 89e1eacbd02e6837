"""What one process of the benchmark is told, and how it answers: JSON files both ways."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .tasks import BATCH, CUTOFF_LEN, LEARNING_RATE


@dataclass(frozen=True, kw_only=True)
class Job:
    """One side of a task, once."""

    run: str
    """module:name of the function that does it."""
    model: str
    """Folder of the model, or what the user named before it is looked up."""
    folder: str
    """An empty folder of its own."""
    dataset_dir: str = ""
    """Folder with the rows to train on, and their dataset_info.json."""
    dataset: str = ""
    ids: str = ""
    """File with the same rows as ids and labels (JSON), made by this package."""
    stage: str = ""
    method: str = ""
    cutoff_len: int = CUTOFF_LEN
    batch: int = BATCH
    accumulation: int = 1
    learning_rate: float = LEARNING_RATE
    steps: int = 1
    """All steps, warm-up included."""
    warmup: int = 0
    settings: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def progress_file(self) -> Path:
        """Gets one character a step."""
        return Path(self.folder) / "progress"

    @property
    def result_file(self) -> Path:
        """Where the answer stands."""
        return Path(self.folder) / "result.json"

    def save(self) -> Path:
        """Write the job into its folder and return the file."""
        path = Path(self.folder) / "job.json"
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: Path) -> "Job":
        """Read a job back."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def advance(self) -> None:
        """Note that one step is done."""
        with self.progress_file.open("a", encoding="ascii") as stream:
            stream.write(".")
