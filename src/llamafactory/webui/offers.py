"""What the lists above the form offer: models, templates, datasets, checkpoints, saved arguments."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import yaml

from ..data.template_files import load_templates
from ..extras.catalog import DownloadSource, find_hub_id, known_models
from ..extras.constants import DATASET_INFO
from ..extras.env import read_env
from ..extras.errors import UserError
from ..hparams.methods import tuning_methods
from .arguments import CUSTOM
from .places import Places


HUBS = {
    "huggingface": DownloadSource.DEFAULT,
    "modelscope": DownloadSource.MODELSCOPE,
    "openmind": DownloadSource.OPENMIND,
}
RANKED = frozenset({"rm", "dpo"})
WEIGHTS = ("adapter_model.safetensors", "adapter_config.json")
WHOLE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
USER_CONFIG = "user_config.yaml"


def start_hub() -> str:
    """Return the hub that the server's environment chose."""
    source = DownloadSource.of(read_env())
    return next(name for name, hub in HUBS.items() if hub is source)


def model_names(hub: str) -> list[str]:
    """Return the display names of the models that a hub has, and Custom."""
    source = HUBS.get(hub, DownloadSource.DEFAULT)
    return [CUSTOM, *(name for name, model in known_models().items() if source in model.hubs)]


def model_path(places: Places, name: str, hub: str) -> str:
    """Return where a model comes from: the administrator's own path for it, else its id on the hub."""
    own = user_config(places).get("path_dict")
    if isinstance(own, dict) and isinstance(own.get(name), str):
        return str(own[name])
    return find_hub_id(name, HUBS.get(hub, DownloadSource.DEFAULT)) or ""


def model_template(name: str) -> str:
    """Return the chat template of a model; empty for a base model, which has none."""
    model = known_models().get(name)
    return (model.template or "") if model else ""


def template_names() -> list[str]:
    """Return the names of all chat templates."""
    return sorted(load_templates())


def dataset_names(places: Places, dataset_dir: str, stage: str | None) -> list[str]:
    """Return the datasets of a folder that suit a stage; none where the folder cannot be read."""
    try:
        folder = places.readable(dataset_dir or "data", "data folder")
        table: Any = json.loads((folder / DATASET_INFO).read_text(encoding="utf-8"))
    except (UserError, OSError, ValueError):
        return []
    entries = cast("dict[str, Any]", table) if isinstance(table, dict) else {}
    return [name for name, entry in entries.items() if stage is None or _suits(entry, stage)]


def checkpoint_names(places: Places, model_name: str, method: str) -> list[str]:
    """Return the runs of a model, and their checkpoints, that training can go on from."""
    return [folder.relative_to(base).as_posix() for base, folder in _run_folders(places, model_name, method)]


def run_names(places: Places, model_name: str, method: str) -> list[str]:
    """Return the names of the runs of a model."""
    names = checkpoint_names(places, model_name, method)
    return list(dict.fromkeys(name.partition("/checkpoint-")[0] for name in names))


def saved_arguments(places: Places) -> list[str]:
    """Return the files that Load can read, newest first."""
    files = [file for file in places.arguments.glob("*.y*ml") if file.is_file()]
    return [file.name for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)]


def user_config(places: Places) -> dict[str, Any]:
    """Return what the administrator set for all visitors: lang, hub_name, path_dict."""
    try:
        loaded = yaml.safe_load((places.cache / USER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _suits(entry: Any, stage: str) -> bool:
    return isinstance(entry, dict) and bool(entry.get("ranking")) == (stage in RANKED)


def _run_folders(places: Places, model_name: str, method: str) -> Iterator[tuple[Path, Path]]:
    try:
        base = places.run_dir(model_name, method, "x").parent
    except UserError:
        return
    row = tuning_methods().get(method)
    marks = WEIGHTS if row is not None and row.is_adapter else WHOLE_WEIGHTS
    for folder in sorted(base.glob("*")):
        for candidate in (folder, *sorted(folder.glob("checkpoint-*"))):
            if any((candidate / name).is_file() for name in marks):
                yield base, candidate
