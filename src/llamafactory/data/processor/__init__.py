"""Encoded conversations to rows of input ids and labels, one file per kind of row."""

from .feedback import FeedbackDatasetProcessor
from .pairwise import PairwiseDatasetProcessor
from .pretrain import PretrainDatasetProcessor
from .processor_utils import DatasetProcessor, Learns, ProcessedRow, greedy_knapsack, infer_seqlen
from .supervised import PackedSupervisedDatasetProcessor, SupervisedDatasetProcessor
from .unsupervised import UnsupervisedDatasetProcessor


__all__ = [
    "DatasetProcessor",
    "FeedbackDatasetProcessor",
    "Learns",
    "PackedSupervisedDatasetProcessor",
    "PairwiseDatasetProcessor",
    "PretrainDatasetProcessor",
    "ProcessedRow",
    "SupervisedDatasetProcessor",
    "UnsupervisedDatasetProcessor",
    "greedy_knapsack",
    "infer_seqlen",
]
