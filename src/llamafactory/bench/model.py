"""Finds the model once, so that no side spends time on fetching or converting it."""

from typing import Any

from .job import Job


def locate(job: Job) -> dict[str, Any]:
    """Return the folder of the model, or its hub id."""
    from ..hparams.parser import get_infer_args
    from ..model.sources import resolve_model

    model_args = get_infer_args({"model_name_or_path": job.model})[0]
    return {"folder": str(resolve_model(job.model, model_args))}
