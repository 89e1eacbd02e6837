"""Where a run starts: afresh or from a checkpoint; told by the files in output_dir, before anything is loaded."""

import math
from dataclasses import dataclass
from pathlib import Path

from ..extras.constants import PREDICTIONS
from ..extras.errors import UserError
from ..extras.logging import get_logger
from ..hparams import TrainingArguments
from .checkpoints import EARLIER, can_resume, is_complete, list_checkpoints, read_state, remove_unfinished, set_aside
from .predictions import forget_predictions


logger = get_logger(__name__)

FINISHED = "train_results.json"
RESULTS = (FINISHED, "eval_results.json", "predict_results.json", "all_results.json", PREDICTIONS)
_MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.gguf")
_NOT_MODELS = frozenset({"training_args.bin"})


@dataclass(frozen=True)
class RunPlan:
    """What the workflow does with output_dir."""

    checkpoint: Path | None
    """Where training goes on; None starts at step 0."""
    notice: str = ""
    """One line for the user about that choice."""


def plan_run(training: TrainingArguments) -> RunPlan:
    """Choose the start of a run; an output_dir that must not be written to is a UserError."""
    if not training.do_train:
        return RunPlan(None)
    output_dir, asked = Path(training.output_dir).expanduser(), training.resume_from_checkpoint
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"output_dir {str(output_dir)!r} is a file; give the path of a folder.")
    if isinstance(asked, str):
        return RunPlan(_asked_checkpoint(Path(asked).expanduser(), training))
    if asked is True:
        return RunPlan(_newest_checkpoint(output_dir, training))
    if training.overwrite_output_dir or not output_dir.is_dir():
        return RunPlan(None)
    return _continue_or_refuse(output_dir, training)


def open_folder(output_dir: Path, step: int) -> None:
    """Clear what would be mistaken for part of the run that now starts after `step`.

    That is: a checkpoint that a killed run left half written, results of an earlier run (they mark a run as
    finished), and checkpoints beyond `step`, which are moved aside.
    """
    remove_unfinished(output_dir)
    for name in RESULTS:
        (output_dir / name).unlink(missing_ok=True)
    forget_predictions(output_dir)
    moved = set_aside(output_dir, step)
    if moved:
        names = ", ".join(folder.name for folder in moved)
        logger.warning(f"Checkpoints of an earlier run were moved to {output_dir / EARLIER}: {names}.")


def _continue_or_refuse(output_dir: Path, training: TrainingArguments) -> RunPlan:
    if (output_dir / FINISHED).is_file():
        raise UserError(
            f"output_dir {str(output_dir)!r} already holds a finished run: choose another output_dir, or set "
            "overwrite_output_dir: true to replace it, or resume_from_checkpoint: true with more num_train_epochs or "
            "max_steps to train it further."
        )
    checkpoints = list_checkpoints(output_dir) if training.resume_from_checkpoint is None else []
    if checkpoints:
        newest = checkpoints[-1]
        _require_optimizer(newest)
        return RunPlan(newest, f"Going on from {newest} (overwrite_output_dir: true would start afresh).")
    if training.resume_from_checkpoint is None and _holds_model(output_dir):
        raise UserError(
            f"output_dir {str(output_dir)!r} holds model weights but no checkpoint to go on from: choose another "
            "output_dir, or set overwrite_output_dir: true to write over them."
        )
    return RunPlan(None)


def _asked_checkpoint(folder: Path, training: TrainingArguments) -> Path:
    if not folder.is_dir():
        raise UserError(f"resume_from_checkpoint: there is no folder {str(folder)!r}.")
    if not is_complete(folder):
        raise UserError(
            f"resume_from_checkpoint: {str(folder)!r} is not a complete checkpoint (it lacks weights or a readable "
            "trainer_state.json)."
        )
    _require_optimizer(folder)
    _require_steps_left(folder, training)
    return folder


def _newest_checkpoint(output_dir: Path, training: TrainingArguments) -> Path:
    checkpoints = list_checkpoints(output_dir)
    if not checkpoints:
        raise UserError(
            f"resume_from_checkpoint is true, but output_dir {str(output_dir)!r} holds no complete checkpoint: leave "
            "the key out to start afresh, or give the path of a checkpoint."
        )
    return _asked_checkpoint(checkpoints[-1], training)


def _require_optimizer(folder: Path) -> None:
    if not can_resume(folder):
        raise UserError(
            f"{str(folder)!r} holds weights only (save_only_model), so training cannot go on from it exactly: set "
            "overwrite_output_dir: true to start afresh, or load it with adapter_name_or_path or model_name_or_path."
        )


def _require_steps_left(folder: Path, training: TrainingArguments) -> None:
    state = read_state(folder)
    step, epoch = int(state.get("global_step", 0)), float(state.get("epoch") or 0.0)
    if training.max_steps > 0:
        is_over, end = step >= training.max_steps, f"max_steps {training.max_steps}"
    else:
        is_over = epoch >= training.num_train_epochs or math.isclose(epoch, training.num_train_epochs)
        end = f"num_train_epochs {training.num_train_epochs:g}"
    if is_over:
        raise UserError(
            f"{str(folder)!r} is already at step {step} (epoch {epoch:g}), where {end} ends the run: raise "
            "num_train_epochs or max_steps to train further."
        )


def _holds_model(output_dir: Path) -> bool:
    files = (file for pattern in _MODEL_FILES for file in output_dir.glob(pattern))
    return any(file.name not in _NOT_MODELS for file in files)
