"""Names that several layers share: the label that losses skip, the files a run leaves, and the known models."""

from typing import TYPE_CHECKING, Any

from .catalog import DownloadSource, known_models


__all__ = [
    "DATASET_INFO",
    "DATA_REPORT",
    "DEFAULT_TEMPLATE",
    "ENVIRONMENT_FILE",
    "IGNORE_INDEX",
    "MULTIMODAL_SUPPORTED_MODELS",
    "PREDICTIONS",
    "RESOLVED_CONFIG",
    "SUPPORTED_MODELS",
    "TRAINER_LOG",
    "DownloadSource",
]

IGNORE_INDEX = -100

DATA_REPORT = "data_report.json"
DATASET_INFO = "dataset_info.json"
ENVIRONMENT_FILE = "environment.json"
PREDICTIONS = "generated_predictions.jsonl"
RESOLVED_CONFIG = "resolved_config.yaml"
TRAINER_LOG = "trainer_log.jsonl"

if TYPE_CHECKING:
    SUPPORTED_MODELS: dict[str, dict[DownloadSource, str]]
    """Display name -> hub -> id."""
    DEFAULT_TEMPLATE: dict[str, str]
    """Display name -> chat template, for the models that have one."""
    MULTIMODAL_SUPPORTED_MODELS: frozenset[str]
    """Display names of the models that take images, video or audio."""


def __getattr__(name: str) -> Any:
    """Make the tables of the catalog when they are asked for, and keep them."""
    if name == "SUPPORTED_MODELS":
        value: Any = {model.name: dict(model.hubs) for model in known_models().values()}
    elif name == "DEFAULT_TEMPLATE":
        value = {model.name: model.template for model in known_models().values() if model.template}
    elif name == "MULTIMODAL_SUPPORTED_MODELS":
        value = frozenset(model.name for model in known_models().values() if model.is_multimodal)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value
