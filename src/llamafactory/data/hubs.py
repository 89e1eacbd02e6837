"""Datasets of the hubs, each through the hub's own library."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..extras.errors import UserError
from ..extras.packages import require
from .parser import DatasetAttr


if TYPE_CHECKING:
    from ..hparams import ModelArguments

NAMES = {"hf_hub": "Hugging Face", "ms_hub": "ModelScope", "om_hub": "Modelers"}


@dataclass(frozen=True)
class Access:
    """Where downloads go, and who asks."""

    cache_dir: str | None = None
    tokens: Mapping[str, str | None] = field(default_factory=dict, repr=False)
    """By origin: hf_hub, ms_hub, om_hub."""

    @classmethod
    def of(cls, model_args: "ModelArguments") -> "Access":
        """Take what the model arguments say."""
        tokens = {name: getattr(model_args, f"{name}_token") for name in NAMES}
        return cls(model_args.cache_dir, tokens)


def load_hub(attr: DatasetAttr, access: Access, *, streaming: bool = False) -> Any:
    """Load the rows of a hub dataset; when it is streamed, they come over the network as they are read."""
    try:
        return LOADERS[attr.load_from](attr, access, streaming)
    except UserError:
        raise
    except (ImportError, OSError, ValueError, KeyError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        hub = NAMES[attr.load_from]
        raise UserError(f"The dataset {attr} could not be loaded from the hub ({hub}): {first}.") from None


def load_huggingface(attr: DatasetAttr, access: Access, streaming: bool = False) -> Any:
    """Load from the Hugging Face hub."""
    import datasets

    return datasets.load_dataset(
        attr.dataset_name,
        name=attr.subset,
        data_dir=attr.folder,
        split=attr.split,
        cache_dir=access.cache_dir,
        token=access.tokens.get("hf_hub"),
        streaming=streaming,
    )


def load_modelscope(attr: DatasetAttr, access: Access, streaming: bool = False) -> Any:
    """Load from ModelScope; its library returns a wrapper or a dataset of Hugging Face's library."""
    load = require("modelscope", "modelscope", f"The dataset {attr}").MsDataset.load
    wanted = {
        "subset_name": attr.subset,
        "data_dir": attr.folder,
        "split": attr.split,
        "cache_dir": access.cache_dir,
        "token": access.tokens.get("ms_hub"),
        "use_streaming": streaming or None,
    }
    rows = load(attr.dataset_name, **{name: value for name, value in wanted.items() if value is not None})
    return rows.to_hf_dataset() if hasattr(rows, "to_hf_dataset") else rows


def load_openmind(attr: DatasetAttr, access: Access, streaming: bool = False) -> Any:
    """Load from Modelers (openMind)."""
    load = require("openmind", None, f"The dataset {attr}").OmDataset.load_dataset
    wanted = {
        "name": attr.subset,
        "data_dir": attr.folder,
        "split": attr.split,
        "cache_dir": access.cache_dir,
        "token": access.tokens.get("om_hub"),
        "streaming": streaming or None,
    }
    return load(path=attr.dataset_name, **{name: value for name, value in wanted.items() if value is not None})


def digest_hub(attr: DatasetAttr, rows: Any) -> str:
    """Hash what tells one state of a hub dataset from another."""
    cached = [Path(item["filename"]) for item in getattr(rows, "cache_files", ())]
    files = [(path.name, path.stat().st_size) for path in cached]
    state = (attr.load_from, attr.dataset_name, attr.subset, attr.split, len(rows), files)
    return hashlib.sha256(repr(state).encode()).hexdigest()


LOADERS: Mapping[str, Callable[[DatasetAttr, Access, bool], Any]] = {
    "hf_hub": load_huggingface,
    "ms_hub": load_modelscope,
    "om_hub": load_openmind,
}
