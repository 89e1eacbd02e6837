"""The one workflow of every stage: load, train, evaluate, predict, and leave a folder that explains itself."""

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import Subset
from transformers import PreTrainedModel, Seq2SeqTrainingArguments, TrainerCallback, set_seed
from transformers.trainer_utils import PredictionOutput

from ..data.arrangement import arrange_rows
from ..data.batch_plan import BatchSize
from ..data.inspection.figures import data_figures
from ..data.loader import DatasetModule, get_dataset
from ..data.streaming import StreamRows
from ..data.template import get_template_and_fix_tokenizer
from ..extras.constants import DATA_REPORT, RESOLVED_CONFIG
from ..extras.device import device_facts
from ..extras.env import read_env, set_defaults
from ..extras.logging import get_logger
from ..extras.plotting import plot_loss
from ..hparams import DataArguments, FinetuningArguments, GeneratingArguments, ModelArguments, TrainingArguments
from ..model.dtype import DtypeChoice, choose_dtype, training_flags
from ..model.loader import load_model, load_tokenizer
from ..model.quantization.float8_training import check_float8, settle_float8
from .adapter_start import adapter_callbacks, start_from_data
from .batches import size_of
from .callbacks.diagnosis import Diagnosis
from .callbacks.early_stopping import early_stopping_callbacks
from .callbacks.float8 import float8_callbacks
from .callbacks.interrupt import Interrupt, InterruptCallback, TrainingInterruptedError
from .callbacks.isolation import IsolationCheck
from .callbacks.log import LogCallback
from .callbacks.neftune import noise_callbacks
from .callbacks.profiler import profiler_callbacks
from .callbacks.stream_report import StreamReport
from .callbacks.swanlab import swanlab_callbacks
from .checkpoints import write_durably
from .choices import choose_threads, settle_liger, settle_step
from .collation import choose_layout, settle_helpers
from .folder_lock import sole_writer
from .hf_args import to_hf_arguments
from .modelcard import create_modelcard_and_push
from .optimizers.making import check_optimizer, optimizer_maker
from .penalty import with_penalties
from .plugins import plugin_callbacks, with_plugins
from .predictions import PredictionStore, describe_run, publish_predictions
from .run_plan import RunPlan, plan_run
from .stage import RunArguments, Stage, StageContext
from .trackers import check_trackers
from .trainer import CustomSeq2SeqTrainer


logger = get_logger(__name__)


@dataclass(frozen=True)
class Run:
    """A run with everything loaded."""

    stage: Stage
    arguments: RunArguments
    trainer: CustomSeq2SeqTrainer
    eval_dataset: Any
    """A dataset, or several by name."""
    interrupt: Interrupt
    data_report: str
    """Counts of rows, tokens and steps, as JSON."""


def run_stage(
    stage: Stage,
    arguments: RunArguments,
    callbacks: Sequence[TrainerCallback] | None = None,
    records: Mapping[str, str] | None = None,
) -> None:
    """Run a stage; `records` are files (name: text) that tell how to repeat the run, saved beside its result."""
    plan = plan_run(arguments.training)
    check_trackers(arguments.training.report_to)
    if stage.check is not None:
        stage.check(arguments)
    if arguments.training.do_train:
        check_optimizer(arguments.training.optim, arguments.finetuning)
        check_float8(arguments.training)
    if plan.notice:
        logger.info(plan.notice)
    writes_alone = sole_writer(Path(arguments.training.output_dir).expanduser())
    with writes_alone if read_env().is_main_process else nullcontext():
        _run_planned(stage, arguments, plan, callbacks or (), records or {})


def _run_planned(
    stage: Stage,
    arguments: RunArguments,
    plan: RunPlan,
    callbacks: Sequence[TrainerCallback],
    records: Mapping[str, str],
) -> None:
    run = prepare(stage, arguments, callbacks)
    if run.trainer.is_world_process_zero():
        write_records(run.trainer.output_dir, {**records, DATA_REPORT: run.data_report})
    metrics: dict[str, float] = {}
    if arguments.training.do_train:
        metrics |= train(run, plan)
    if arguments.training.do_eval:
        metrics |= evaluate(run)
    if arguments.training.do_predict:
        metrics |= predict(run)
    if arguments.training.do_train:
        create_modelcard_and_push(run.trainer, arguments, metrics)
        logger.info(f"Done: {run.trainer.output_dir} holds the result; its README.md says how to load it.")


class EntryPoint(Protocol):
    """Runs one stage with the five argument groups of `get_train_args`."""

    def __call__(
        self,
        model_args: ModelArguments,
        data_args: DataArguments,
        training_args: TrainingArguments,
        finetuning_args: FinetuningArguments,
        generating_args: GeneratingArguments,
        callbacks: Sequence[TrainerCallback] | None = None,
    ) -> None: ...


def entry_point(stage: Stage) -> EntryPoint:
    """Make the public `run_<stage>` of a stage."""

    def run(
        model_args: ModelArguments,
        data_args: DataArguments,
        training_args: TrainingArguments,
        finetuning_args: FinetuningArguments,
        generating_args: GeneratingArguments,
        callbacks: Sequence[TrainerCallback] | None = None,
    ) -> None:
        groups = RunArguments(model_args, data_args, training_args, finetuning_args, generating_args)
        run_stage(stage, groups, callbacks)

    run.__name__ = run.__qualname__ = f"run_{stage.name}"
    run.__doc__ = f"Run {stage.title} with these arguments."
    return run


def prepare(stage: Stage, arguments: RunArguments, callbacks: Sequence[TrainerCallback]) -> Run:
    """Load everything and put the trainer together; training arguments come first, because they start the ranks."""
    hf_arguments = to_hf_arguments(arguments)
    if arguments.training.logging_dir is not None:
        set_defaults({"TENSORBOARD_LOGGING_DIR": arguments.training.logging_dir})
    choose_threads()
    set_seed(arguments.training.seed)
    dtypes = choose_dtype(training_flags(arguments.training, arguments.finetuning), device_facts())
    context, datasets = load(stage, arguments, hf_arguments, dtypes)
    tokenizer, layout = context.tokenizer, context.layout
    model = cast(PreTrainedModel, context.model)
    train_dataset = arrange_rows(datasets["train_dataset"], stage.dataset, arguments.data, arguments.training.seed)
    eval_dataset = arrange_rows(datasets["eval_dataset"], stage.dataset, arguments.data, is_training=False)
    parts = with_penalties(with_plugins(stage.build(context), context), context)
    if stage.annotate is not None:
        train_dataset, eval_dataset = (stage.annotate(context, rows) for rows in (train_dataset, eval_dataset))
    settle_helpers(parts.helpers, layout, arguments, hf_arguments)
    batch_limit = size_of(parts.collate, arguments.data, arguments.training)
    parts = replace(parts, batch_limit=batch_limit)
    if arguments.training.do_train:
        settle_step(model, arguments, train_dataset, batch_limit, dtypes)
    interrupt = Interrupt()
    checks = [] if layout.is_asked else [IsolationCheck()]
    trainer = CustomSeq2SeqTrainer(
        model,
        hf_arguments,
        parts,
        diagnosis=Diagnosis(tokenizer, may_be_zero=stage.rollout is not None or stage.loss_may_be_zero),
        callbacks=[
            *checks,
            *adapter_callbacks(model, arguments.finetuning),
            *run_callbacks(arguments, interrupt),
            *callbacks,
        ],
        interrupt=interrupt,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset if hf_arguments.do_eval else None,
        processing_class=context.processor or tokenizer,
    )
    trainer.make_optimizer = optimizer_maker(arguments.finetuning)
    trainer.add_callback(LogCallback(trainer.meter, record_vram=read_env().record_vram))
    report = partial(describe_data, datasets, arguments, hf_arguments.world_size, stage.dataset, batch_limit)
    if isinstance(train_dataset, StreamRows):
        trainer.add_callback(StreamReport(train_dataset, report))
    return Run(stage, arguments, trainer, eval_dataset, interrupt, report())


def load(
    stage: Stage, arguments: RunArguments, hf_arguments: Seq2SeqTrainingArguments, dtypes: DtypeChoice
) -> tuple[StageContext, DatasetModule]:
    """Load the tokenizer, the rows and the model, in this order: mistakes in the data show before weights are read."""
    loaded = load_tokenizer(arguments.model)
    tokenizer = loaded["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, arguments.data)
    datasets = get_dataset(template, arguments.model, arguments.data, arguments.training, stage.dataset, **loaded)
    model = load_model(
        tokenizer,
        arguments.model,
        arguments.finetuning,
        is_trainable=arguments.training.do_train,
        dtype=dtypes,
        head=stage.head,
    )
    settle_liger(model, arguments)
    settle_float8(model, arguments.training)
    context = StageContext(
        arguments=arguments,
        tokenizer=tokenizer,
        processor=loaded["processor"],
        template=template,
        model=model,
        layout=choose_layout(model, arguments, hf_arguments, kind=stage.dataset, joins_rows=stage.joins_rows),
    )
    return context, datasets


def describe_data(
    datasets: DatasetModule, arguments: RunArguments, world_size: int, kind: str, size: BatchSize
) -> str:
    """Return the counts of rows, tokens and steps as JSON."""
    figures = data_figures(datasets, arguments.data, arguments.training, world_size, stage=kind, size=size)
    return json.dumps(figures.to_dict(), indent=2, ensure_ascii=False) + "\n"


def run_callbacks(arguments: RunArguments, interrupt: Interrupt) -> list[TrainerCallback]:
    """Return the callbacks that the arguments ask for."""
    patience = arguments.finetuning.early_stopping_steps
    early_stopping = early_stopping_callbacks(patience) if patience is not None else []
    tracking = swanlab_callbacks(arguments.finetuning) if arguments.finetuning.use_swanlab else []
    return [
        *early_stopping,
        *tracking,
        *profiler_callbacks(arguments.training),
        *float8_callbacks(arguments.training),
        *noise_callbacks(arguments.training.neftune_noise_alpha),
        *plugin_callbacks(arguments),
        InterruptCallback(interrupt),
    ]


def train(run: Run, plan: RunPlan) -> dict[str, float]:
    """Train, save the result and what was measured; a signal ends the process after a checkpoint was saved."""
    trainer = run.trainer
    if plan.checkpoint is None:
        start_from_data(cast(nn.Module, trainer.model), cast(Any, trainer.train_dataset), trainer.processing_class)
    try:
        with run.interrupt:
            result = trainer.train(resume_from_checkpoint=str(plan.checkpoint) if plan.checkpoint else None)
    except TrainingInterruptedError as stop:
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
        if trainer.is_world_process_zero():
            logger.warning(_farewell(run, stop))
        raise SystemExit(stop.exit_code) from None

    metrics = result.metrics
    if run.arguments.finetuning.include_effective_tokens_per_second:
        metrics["effective_tokens_per_sec"] = round(trainer.meter.session_tokens / metrics["train_runtime"], 2)
    trainer.save_model()
    _save_metrics(trainer, "train", metrics)
    trainer.save_state()
    if run.arguments.finetuning.plot_loss and trainer.is_world_process_zero():
        for path in plot_loss(trainer.output_dir, _plotted(run)):
            logger.info(f"Drew {path}.")
    if run.interrupt.own:  # too late to stop the last step
        raise SystemExit(TrainingInterruptedError(run.interrupt.own).exit_code)
    return metrics


def evaluate(run: Run) -> dict[str, float]:
    """Measure the model on each evaluation dataset."""
    metrics = run.trainer.evaluate(run.eval_dataset, metric_key_prefix="eval")
    _save_metrics(run.trainer, "eval", metrics)
    return metrics


def predict(run: Run) -> dict[str, float]:
    """Predict every evaluation row and write the predictions in row order."""
    datasets = run.eval_dataset if isinstance(run.eval_dataset, dict) else {"": run.eval_dataset}
    metrics: dict[str, float] = {}
    records: list[dict[str, Any]] = []
    for name, dataset in datasets.items():
        prefix = f"predict_{name}" if name else "predict"
        if run.trainer.parts.predictor is None or not hasattr(dataset, "__len__"):
            output: Any = run.trainer.predict(dataset, metric_key_prefix=prefix)
        else:
            output = _predict_rows(run, name, dataset, prefix)
        metrics |= output.metrics
        records += output.predictions or []
    if records and run.trainer.is_world_process_zero():
        publish_predictions(run.trainer.output_dir, records)
    _save_metrics(run.trainer, "predict", metrics)
    return metrics


def _predict_rows(run: Run, name: str, dataset: Any, prefix: str) -> Any:
    """Predict the rows that an earlier, stopped run of the same configuration has not predicted."""
    trainer, accelerator = run.trainer, run.trainer.accelerator
    store = PredictionStore(trainer.output_dir, name, describe_run(run.arguments), accelerator.process_index)
    rows = store.open(dataset, gather_object if accelerator.num_processes > 1 else list)
    accelerator.wait_for_everyone()
    if not rows and trainer.parts.predictor is not None:
        records: Any = store.complete([])
        measured = trainer.parts.predictor.measure(records)
        return PredictionOutput(records, None, {f"{prefix}_{key}": value for key, value in measured.items()})
    trainer.prediction_store = store
    try:
        return trainer.predict(Subset(dataset, rows), metric_key_prefix=prefix)  # pyright: ignore[reportArgumentType]
    finally:
        trainer.prediction_store = None


def write_records(output_dir: Path, records: Mapping[str, str]) -> None:
    """Write the files that tell how to repeat a run."""
    output_dir.mkdir(parents=True, exist_ok=True)
    for name, text in records.items():
        write_durably(output_dir / name, text)


def _save_metrics(trainer: CustomSeq2SeqTrainer, split: str, metrics: dict[str, float]) -> None:
    trainer.log_metrics(split, metrics)
    trainer.save_metrics(split, metrics)


def _plotted(run: Run) -> list[str]:
    """Each evaluation dataset of its own has its own curve."""
    names = list(run.eval_dataset) if isinstance(run.eval_dataset, dict) else []
    return [*run.stage.plots, *(f"eval_{name}_loss" for name in names)]


def _farewell(run: Run, stop: TrainingInterruptedError) -> str:
    state, output_dir = run.trainer.state, run.trainer.output_dir
    checkpoint = output_dir / f"checkpoint-{state.global_step}"
    config = shlex.quote(str(output_dir / RESOLVED_CONFIG))
    return (
        f"Stopped by {stop} after step {state.global_step} of {state.max_steps}; {checkpoint} holds everything. Go on "
        f"with: llamafactory-cli train {config} resume_from_checkpoint={shlex.quote(str(checkpoint))}"
    )
