"""`tokenized_path`: prepared rows in a folder of the user's choice, saved once and read from then on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..extras.errors import UserError
from ..extras.logging import get_logger


logger = get_logger(__name__)

SETTING = "preparation.json"
COMPARED = {
    "template": "the template",
    "tokenizer": "the tokenizer",
    "options": "the data arguments",
    "mixing": "the mixing",
    "stage": "the stage",
    "predict_with_generate": "predict_with_generate",
}


def load_tokenized(path: str | None, setting: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return {"train", "eval"} from the folder, or None when it is not there; refuse rows made with other settings."""
    if path is None or not (Path(path) / SETTING).is_file():
        return None

    from datasets import load_from_disk

    content = json.loads((Path(path) / SETTING).read_text(encoding="utf-8"))
    changed = [words for name, words in COMPARED.items() if content["setting"].get(name) != setting[name]]
    if changed:
        raise UserError(
            f"tokenized_path {path!r} holds rows that were prepared with other settings ({', '.join(changed)}); "
            "remove the folder or name another one."
        )
    logger.info(f"Prepared rows are read from {path}; dataset and eval_dataset are not looked at.")
    loaded: dict[str, Any] = {}
    for side, names in content["parts"].items():
        parts = {name: load_from_disk(str(Path(path) / folder)) for name, folder in names.items()}
        loaded[side] = parts.get("") if set(parts) <= {""} else parts
    return loaded


def save_tokenized(path: str | None, setting: Mapping[str, Any], rows: Mapping[str, Any]) -> None:
    """Save both sides; the first process that comes does it, and the settings are written last."""
    if path is None:
        return
    folder = Path(path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if (folder / SETTING).is_file():
            return
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"tokenized_path {path!r} is a folder with other files in it; name a new or empty one.")
        folder.mkdir(exist_ok=True)
        parts: dict[str, dict[str, str]] = {}
        for side, value in rows.items():
            named = value if isinstance(value, dict) else {"": value}
            parts[side] = {name: f"{side}{index}" for index, name in enumerate(named) if named[name] is not None}
            for name, subfolder in parts[side].items():
                named[name].save_to_disk(str(folder / subfolder))
        text = json.dumps({"setting": dict(setting), "parts": parts}, indent=2)
        (folder / SETTING).write_text(text, encoding="utf-8")
    logger.info(f"Prepared rows are saved in {path}.")
