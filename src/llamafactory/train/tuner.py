"""The commands `train` and `export`: from a configuration to the run of its stage."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from ..extras.constants import ENVIRONMENT_FILE, RESOLVED_CONFIG
from ..extras.environment import environment_report
from ..extras.garbage import importing
from ..hparams import DataArguments, FinetuningArguments, GeneratingArguments, ModelArguments, TrainingArguments
from ..hparams.parser import load_run_config
from .plugins import load_plugins
from .run_plan import plan_run
from .stage import STAGES, RunArguments


if TYPE_CHECKING:
    from transformers import TrainerCallback


class TrainJob(TypedDict):
    """What one training process is told."""

    args: Mapping[str, Any] | Sequence[str] | None
    """Keys and values, or the words of a command line; None takes this process's own."""
    callbacks: "NotRequired[Sequence[TrainerCallback] | None]"


def run_exp(
    args: Mapping[str, Any] | Sequence[str] | None = None, callbacks: "Sequence[TrainerCallback] | None" = None
) -> None:
    """Train as the arguments say: a dict, the words of a command line, or (None) this process's own words."""
    _training_function({"args": args, "callbacks": callbacks})


def export_model(args: Mapping[str, Any] | Sequence[str] | None = None) -> None:
    """Merge the adapters of a model into it and save it."""
    from .export import export_model as export

    export(args)


def _training_function(config: TrainJob) -> None:
    """Run one job in this process; its arguments and files are checked before any heavy library is imported."""
    run_config = load_run_config(config["args"], "train")
    arguments = RunArguments(
        run_config.get(ModelArguments),
        run_config.get(DataArguments),
        run_config.get(TrainingArguments),
        run_config.get(FinetuningArguments),
        run_config.get(GeneratingArguments),
    )
    plan_run(arguments.training)
    load_plugins(arguments.finetuning.plugins)
    with importing():
        stage = STAGES.get(arguments.finetuning.stage)

        from .ranks import leave_ranks
        from .workflow import run_stage

    environment = json.dumps(environment_report(), indent=2, ensure_ascii=False)
    records = {RESOLVED_CONFIG: run_config.to_yaml(), ENVIRONMENT_FILE: environment + "\n"}
    try:
        run_stage(stage, arguments, config.get("callbacks"), records)
    finally:
        leave_ranks()
