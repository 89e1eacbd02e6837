"""Puts a plan together: arguments, rows, estimate, suggestions, and the step that tells the time."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ...extras.device import DeviceFacts, device_facts
from ...extras.logging import ROOT, get_logger
from ...hparams import DataArguments, FinetuningArguments, GeneratingArguments, ModelArguments, TrainingArguments
from ...hparams.config import write_value
from ...hparams.parser import load_run_config
from ...model.memory import free_memory
from ..plugins import load_plugins
from ..stage import STAGES, RunArguments, Stage
from .estimate import Estimate, estimate_run, memory_figures, model_figures, num_devices
from .figures import DataFigures, DeviceFigures, Plan, ProbeFigures
from .probe import run_probe
from .rows import data_figures, load_rows
from .suggestions import suggest


logger = get_logger(__name__)


def make_plan(words: Sequence[str] | Mapping[str, Any], *, with_probe: bool = True, free: int | None = None) -> Plan:
    """Plan the run that these words of a command line (or keys and values) describe.

    `free` stands for the free memory of another machine; by default this one is asked.
    """
    arguments = read_arguments(words)
    load_plugins(arguments.finetuning.plugins)
    stage, facts = STAGES.get(arguments.finetuning.stage), device_facts()
    if stage.check is not None:
        stage.check(arguments)
    room = free_memory(facts) if free is None else free
    rows = load_rows(stage, arguments)
    estimate = estimate_run(stage, arguments, rows, facts, room)
    data = data_figures(stage, rows, arguments, estimate.size, num_devices(facts))
    is_fit = estimate.fits(room)

    def attempt(changes: Mapping[str, Any]) -> Estimate:
        with quietly():
            return estimate_run(stage, read_arguments(with_changes(words, changes)), rows, facts, room)

    notes = [rows.note] if rows.note else []
    probe = None
    if with_probe:
        probe, note = _probe(stage, arguments, data, facts, is_fit)
        notes += [note] if note else []
    return Plan(
        stage=stage.name,
        device=DeviceFigures(kind=facts.kind, name=facts.name, count=num_devices(facts)),
        model=model_figures(estimate),
        data=data,
        memory=memory_figures(estimate, room),
        fits=is_fit,
        suggestions=() if is_fit else suggest(estimate, attempt, room),
        probe=probe,
        notes=tuple(notes),
    )


@contextmanager
def quietly(level: int = logging.ERROR) -> Iterator[None]:
    """Say nothing below `level` of the choices of runs that are only tried out."""
    root = logging.getLogger(ROOT)
    before = root.level
    root.setLevel(max(before, level))
    try:
        yield
    finally:
        root.setLevel(before)


def read_arguments(words: Sequence[str] | Mapping[str, Any]) -> RunArguments:
    """Read the configuration as `train` does; a plan is always one of training."""
    config = load_run_config(words, "train")
    return RunArguments(
        config.get(ModelArguments),
        config.get(DataArguments),
        replace(config.get(TrainingArguments), do_train=True),
        config.get(FinetuningArguments),
        config.get(GeneratingArguments),
    )


def with_changes(
    words: Sequence[str] | Mapping[str, Any], changes: Mapping[str, Any]
) -> Sequence[str] | Mapping[str, Any]:
    """Put changed keys behind what the user wrote: later words win."""
    if isinstance(words, Mapping):
        return {**words, **changes}
    return [*words, *(f"{name}={write_value(value)}" for name, value in changes.items())]


def _probe(
    stage: Stage, arguments: RunArguments, data: DataFigures, facts: DeviceFacts, is_fit: bool
) -> tuple[ProbeFigures | None, str]:
    if not is_fit:
        return None, "No step was run, because the run would not fit."
    if facts.kind != "cpu" and facts.count > 1:
        return (
            None,
            "No step was run: this process would have to share the model with others; time it with one device.",
        )
    if data.is_assumed:
        return None, "No step was run, because there are no rows to learn."
    logger.info("Running a step, to tell the time.")
    with quietly(logging.WARNING):  # the rows were told of already, and this is not the training
        return run_probe(stage, arguments, data, facts), ""
