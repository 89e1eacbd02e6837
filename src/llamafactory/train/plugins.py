"""A user's own losses, metrics, rewards, stages and callbacks, without a fork.

The key `plugins` names Python files (or importable modules). Each is imported once, before the run looks anything up,
and puts its things into the registries below under names of its own; the keys `stage`, `objective`, `metrics` and
`reward_funcs` then take those names, and callbacks run in every run that names their plug-in:

    from llamafactory.train.plugins import METRICS

    @METRICS.register("exact_match")
    def exact_match(records):
        return {"exact_match": sum(row["predict"] == row["label"] for row in records) / len(records)}
"""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..extras.errors import UserError
from ..extras.logging import get_logger
from ..extras.registry import Registry
from .stage import STAGES, RunArguments, StageContext, StageParts


if TYPE_CHECKING:
    from transformers import TrainerCallback

    from .objective import Batch, Models, Objective, Predictor


__all__ = [
    "CALLBACKS",
    "METRICS",
    "OBJECTIVES",
    "REWARDS",
    "STAGES",
    "load_plugins",
    "plugin_callbacks",
    "with_plugins",
]

logger = get_logger(__name__)

Metric = Callable[[Sequence[Mapping[str, Any]]], dict[str, float]]
"""Takes the records of a prediction (for sft: prompt, predict, label) and returns numbers by name."""
Reward = Callable[..., Sequence[float]]
"""Takes prompts and completions (lists of text) and the rows' other columns by name; returns one number each."""

OBJECTIVES: "Registry[Callable[[StageContext], Objective]]" = Registry("objective")
"""Makers of losses that take the place of a stage's own; chosen by the key `objective`."""
METRICS: Registry[Metric] = Registry("metric")
"""Measured on predictions beside the stage's own metrics; chosen by the key `metrics`."""
REWARDS: Registry[Reward] = Registry("reward")
"""Rewards by name, for the key `reward_funcs`."""
CALLBACKS: "Registry[Callable[[RunArguments], TrainerCallback]]" = Registry("callback")
"""Makers of callbacks."""


PLUGINS: Registry[tuple[str, ...]] = Registry("plug-in")
"""What was imported, by place, with the names of the callbacks that each brought."""


def load_plugins(names: Iterable[str]) -> None:
    """Import each plug-in; a missing file or module is a UserError, a mistake inside one shows its own traceback."""
    for name in names:
        place = _place(name)
        if place in PLUGINS:
            continue
        earlier = CALLBACKS.names()
        if name.endswith(".py"):
            _load_file(Path(place))
        else:
            _load_module(name)
        PLUGINS.register(place, tuple(callback for callback in CALLBACKS.names() if callback not in earlier))
        logger.info(f"Plug-in: {place}.")


def plugin_callbacks(arguments: RunArguments) -> "list[TrainerCallback]":
    """Make the callbacks that this run's plug-ins registered."""
    places = [_place(name) for name in arguments.finetuning.plugins]
    return [CALLBACKS.get(name)(arguments) for place in places for name in PLUGINS.get(place)]


def _place(name: str) -> str:
    return str(Path(name).expanduser().resolve()) if name.endswith(".py") else name


def _load_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"plugins: there is no file {str(path)!r}; give the path of a Python file or a module's name.")
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"llamafactory_plugin_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"plugins: {str(path)!r} cannot be imported as Python; give the path of a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:  # Ctrl-C too: a half-imported module must not be found by the next import
        del sys.modules[name]
        raise


def _load_module(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(
                f"plugins: there is no module {name!r}; install it, or give the path of a Python file (ending in .py)."
            ) from error
        raise


def with_plugins(parts: StageParts, context: StageContext) -> StageParts:
    """Put the objective and the metrics that the keys ask for in place of, and beside, the stage's own."""
    finetuning = context.arguments.finetuning
    if finetuning.objective is not None:
        parts = replace(parts, objective=OBJECTIVES.get(finetuning.objective)(context))
    if not finetuning.metrics:
        return parts
    if parts.predictor is None:
        raise UserError(
            f"metrics: {','.join(finetuning.metrics)} are measured on predictions, and this run makes none; set "
            "predict_with_generate: true with do_predict or do_eval."
        )
    metrics = tuple(METRICS.get(name) for name in finetuning.metrics)
    return replace(parts, predictor=MeasuredPredictor(parts.predictor, metrics))


@dataclass(frozen=True)
class MeasuredPredictor:
    """A predictor with further metrics."""

    inner: "Predictor"
    metrics: tuple[Metric, ...]

    def collate(self, rows: list[dict[str, Any]]) -> "Batch":
        """Make the batch that `predict` takes."""
        return self.inner.collate(rows)

    def predict(self, models: "Models", batch: "Batch") -> list[dict[str, Any]]:
        """Return one record per row."""
        return self.inner.predict(models, batch)

    def measure(self, records: list[dict[str, Any]]) -> dict[str, float]:
        """Return the stage's own metrics and the further ones."""
        measured = self.inner.measure(records)
        for metric in self.metrics:
            measured |= {name: float(value) for name, value in metric(records).items()}
        return measured
