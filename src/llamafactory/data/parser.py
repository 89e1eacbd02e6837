"""Which datasets a run reads: names, paths and hub ids become DatasetAttr rows.

A name is looked up in dataset_info.json; a path to a file or folder, or a hub id, works without being listed there.
`columns` and `tags` of an entry are put over the defaults of its formatting, so a partial mapping is enough.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..extras.constants import DATASET_INFO
from ..extras.env import Env, read_env
from ..extras.errors import UserError
from ..extras.logging import get_logger, notice_once
from ..extras.registry import MAX_LISTED, did_you_mean
from .data_files import FILE_TYPES, file_type, find_local


logger = get_logger(__name__)

Origin = Literal["file", "hf_hub", "ms_hub", "om_hub", "cloud_file", "script"]
COLUMNS = ("prompt", "query", "response", "history", "messages", "system", "tools")
COLUMNS += ("images", "videos", "audios", "chosen", "rejected", "kto_tag")
TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag")
DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "alpaca": {},
    "sharegpt": {},
    "openai": {
        "messages": "messages",
        "tools": "tools",
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "observation_tag": "tool",
        "function_tag": "tool_calls",
    },
}
HUBS: tuple[tuple[str, Origin], ...] = (("hf_hub_url", "hf_hub"), ("ms_hub_url", "ms_hub"), ("om_hub_url", "om_hub"))
OTHER_ORIGINS: tuple[tuple[str, Origin], ...] = (
    ("script_url", "script"),
    ("cloud_file_name", "cloud_file"),
    ("file_name", "file"),
)
PREFERENCE: tuple[Origin, ...] = ("hf_hub", "ms_hub", "om_hub", "script", "cloud_file", "file")
CLOUD_URL = re.compile(r"[a-z][a-z0-9+]+://")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
KEYS = {key for key, _ in (*HUBS, *OTHER_ORIGINS)} | {"columns", "tags", "values"}
PLAIN_KEYS = ("ranking", "subset", "split", "folder", "num_samples", "weight", "values")
KEYS |= {"formatting", *PLAIN_KEYS}


@dataclass(frozen=True)
class DatasetAttr:
    """Where a dataset comes from and which of its columns and tags mean what."""

    load_from: Origin
    dataset_name: str  # a path or a hub id
    formatting: Literal["alpaca", "sharegpt", "openai"] = "alpaca"
    name: str = ""  # what the user calls it
    is_detected: bool = False  # the layout is to be found out from the first row
    ranking: bool = False
    subset: str | None = None
    split: str = "train"
    folder: str | None = None
    num_samples: int | None = None
    weight: float | None = None
    values: Mapping[str, str] = field(default_factory=dict)
    prompt: str | None = "instruction"
    query: str | None = "input"
    response: str | None = "output"
    history: str | None = None
    messages: str | None = "conversations"
    system: str | None = None
    tools: str | None = None
    images: str | None = None
    videos: str | None = None
    audios: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    kto_tag: str | None = None
    role_tag: str = "from"
    content_tag: str = "value"
    user_tag: str = "human"
    assistant_tag: str = "gpt"
    observation_tag: str = "observation"
    function_tag: str = "function_call"
    system_tag: str = "system"

    def __str__(self) -> str:
        return self.name or self.dataset_name


def get_dataset_list(names: Iterable[str] | None, dataset_dir: str | Mapping[str, Any]) -> list[DatasetAttr]:
    """Turn what the user listed into DatasetAttr rows."""
    names = [name.strip() for name in names or () if name.strip()]
    if isinstance(dataset_dir, str) and dataset_dir == "ONLINE":
        return [DatasetAttr(pick_hub(read_env()), name, name=name, is_detected=True) for name in names]

    folder = dataset_dir if isinstance(dataset_dir, str) else ""
    table: Mapping[str, Any] | None = None
    rows: list[DatasetAttr] = []
    for name in names:
        attr = None
        if file_type(name) not in FILE_TYPES and not CLOUD_URL.match(name):  # a listed name is stronger than a folder
            table = read_dataset_info(dataset_dir) if table is None else table
            attr = read_entry(name, table[name], folder) if name in table else None
        attr = attr or read_place(name, folder)
        if attr is None:
            raise UserError(describe_unknown(name, table or {}, folder))
        rows.append(attr)
    return rows


def read_place(name: str, folder: str) -> DatasetAttr | None:
    """Take a name for what it looks like: a URL of a cloud store, a path, a pattern, or the id of a hub dataset."""
    path = find_path(name, folder)
    if CLOUD_URL.match(name):
        place: tuple[Origin, str] = ("cloud_file", name)
    elif path is not None:
        place = ("file", path)
    elif HUB_ID.fullmatch(name) and file_type(name) not in FILE_TYPES:
        place = (pick_hub(read_env()), name)
    else:
        return None
    return DatasetAttr(*place, name=name, is_detected=True)


def pick_hub(env: Env) -> Origin:
    """Return the hub whose ids are meant when nothing else says so."""
    if env.use_modelscope_hub:
        return "ms_hub"
    return "om_hub" if env.use_openmind_hub else "hf_hub"


def read_dataset_info(dataset_dir: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """Read dataset_info.json; an empty table when the folder has none."""
    if not isinstance(dataset_dir, str):
        return dataset_dir
    if dataset_dir.startswith("REMOTE:"):
        from huggingface_hub import hf_hub_download

        repo = dataset_dir.removeprefix("REMOTE:")
        path = Path(hf_hub_download(repo_id=repo, filename=DATASET_INFO, repo_type="dataset"))
    else:
        path = Path(dataset_dir) / DATASET_INFO
    if not path.is_file():
        return {}

    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}; mend the JSON.") from None
    if not isinstance(table, dict):
        raise UserError(f"{path} must hold an object whose keys are dataset names, not a {type(table).__name__}.")
    return table


def read_entry(name: str, entry: object, folder: str, env: Env | None = None) -> DatasetAttr:
    """Read one entry of dataset_info.json."""
    where = f"The entry {name!r} of {DATASET_INFO}"
    if not isinstance(entry, dict):
        raise UserError(f"{where} must be an object, not {entry!r}.")
    for key in set(entry) - KEYS:
        notice_once(logger, f"{where} has the unknown key {key!r}, which is not used.{did_you_mean(key, KEYS)}")
    formatting = entry.get("formatting", "alpaca")
    if formatting not in DEFAULTS:
        raise UserError(f"{where} has formatting {formatting!r}; use one of {', '.join(DEFAULTS)}.")

    origin, source = find_origin(where, entry, env or read_env())
    if origin == "file" and folder:
        source = str(Path(folder) / source)
    names: dict[str, Any] = dict(DEFAULTS[formatting])
    for key, known in (("columns", COLUMNS), ("tags", TAGS)):
        mapping = entry.get(key) or {}
        check_keys(f"{where}, {key!r},", mapping, known)
        names.update(mapping)
    values = entry.get("values") or {}
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise UserError(f"{where}, 'values', must be an object of texts, not {values!r}.")
    check_amounts(where, entry)
    plain = {key: entry[key] for key in PLAIN_KEYS if key in entry}
    return DatasetAttr(origin, source, formatting, name, **plain, **names)


def check_amounts(where: str, entry: Mapping[str, Any]) -> None:
    """Refuse a num_samples or weight that counts nothing, and both at once."""
    num_samples, weight = entry.get("num_samples"), entry.get("weight")
    if num_samples is not None and (type(num_samples) is not int or num_samples < 1):
        raise UserError(f"{where} has num_samples {num_samples!r}; give a whole number from 1 on.")
    if weight is not None and (type(weight) not in (int, float) or not 0 < weight < float("inf")):
        raise UserError(f"{where} has weight {weight!r}; give a number above 0.")
    if num_samples is not None and weight is not None:
        raise UserError(f"{where} has both num_samples and weight, which say the same thing twice; remove one.")


def find_origin(where: str, entry: Mapping[str, Any], env: Env) -> tuple[Origin, str]:
    """Decide where an entry's rows come from; of several hubs, the one that the environment asks for."""
    given = {origin: str(entry[key]) for key, origin in (*HUBS, *OTHER_ORIGINS) if entry.get(key)}
    hubs: dict[Origin, bool] = {"ms_hub": env.use_modelscope_hub, "om_hub": env.use_openmind_hub}
    for origin in sorted(PREFERENCE, key=lambda origin: not hubs.get(origin)):
        if origin in given:
            return origin, given[origin]
    raise UserError(f"{where} does not say where its rows are; give it a file_name or a hf_hub_url.")


def check_keys(where: str, mapping: object, known: Iterable[str]) -> None:
    """Refuse what is no mapping, and keys that mean nothing."""
    if not isinstance(mapping, dict):
        raise UserError(f"{where} must be an object, not {mapping!r}.")
    for key in mapping:
        if key not in known:
            raise UserError(f"{where} has the unknown key {key!r}.{did_you_mean(key, known)}")


def find_path(name: str, folder: str) -> str | None:
    """Return the path or pattern that has files of rows, seen from here or from the dataset folder."""
    for path in (Path(name).expanduser(), Path(folder) / name):
        if find_local(str(path)):
            return str(path)
    return None


def describe_unknown(name: str, table: Mapping[str, Any], folder: str) -> str:
    """Say in one sentence what is wrong with a dataset's name."""
    info = Path(folder) / DATASET_INFO
    if file_type(name) in FILE_TYPES:
        return f"The dataset file {name!r} does not exist, neither here nor in {folder!r}; check the path."
    if not table:
        return f"Unknown dataset {name!r}: there is no {info}; set dataset_dir, or give the path of a file."
    listed = sorted(table)
    known = ", ".join(listed[:MAX_LISTED]) + (
        f" and {len(listed) - MAX_LISTED} more" if len(listed) > MAX_LISTED else ""
    )
    return f"Unknown dataset {name!r}.{did_you_mean(name, table)} Known in {info}: {known}."
