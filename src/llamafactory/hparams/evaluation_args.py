"""Arguments of the benchmark command."""

from dataclasses import dataclass
from typing import Literal

from .kinds import Arguments, Count, Natural


@dataclass(frozen=True, kw_only=True)
class EvaluationArguments(Arguments):
    """Benchmarks."""

    task: str
    """Benchmark and split, as in `mmlu_test`."""
    task_dir: str = "evaluation"
    """Folder with the benchmark's files."""
    batch_size: Count = 4
    """Questions answered at a time on each device."""
    seed: Natural = 42
    """Chooses the examples that stand before a question."""
    lang: Literal["en", "zh"] = "en"
    """Language of the prompts."""
    n_shot: Natural = 5
    """Solved examples shown before each question."""
    save_dir: str | None = None
    """New folder for the answers and the scores."""
    download_mode: Literal["reuse_dataset_if_exists", "reuse_cache_if_exists", "force_redownload"] = (
        "reuse_dataset_if_exists"
    )
    """Takes downloaded files again, or fetches them anew."""
