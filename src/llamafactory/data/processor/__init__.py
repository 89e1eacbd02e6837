"""Encoded conversations to rows of input ids and labels, one file per kind of row."""

from .processor_utils import DatasetProcessor, ProcessedRow, infer_seqlen
from .supervised import SupervisedDatasetProcessor
from .unsupervised import UnsupervisedDatasetProcessor


__all__ = [
    "DatasetProcessor",
    "ProcessedRow",
    "SupervisedDatasetProcessor",
    "UnsupervisedDatasetProcessor",
    "infer_seqlen",
]
