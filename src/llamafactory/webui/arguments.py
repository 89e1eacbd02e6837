"""The whole configuration of a run that the form stands for, and the form that a configuration stands for."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from ..extras.errors import UserError
from ..hparams.config import SECRET_NAMES, write_value
from ..hparams.parser import read_args
from ..hparams.schema import list_params
from ..hparams.values import ValueProblem, coerce, shorten
from ..hparams.yamltext import YamlError, load_flow, read_entries
from .exchange import fill_form, read_form, shows, to_yaml, without_secrets
from .layout import UNSET, Field
from .places import Places
from .wording import DEFAULT_LANGUAGE, words_of


Values = Mapping[str, Any]  # element id -> what the widget holds
WHOLE = ("full", "freeze")  # methods whose checkpoint is a whole model
FIXED: Mapping[str, Any] = {"do_train": True, "plot_loss": True, "include_num_input_tokens_seen": True}
PPO: Mapping[str, Any] = {"top_k": 0, "top_p": 0.9}
NO_VARIABLES: Mapping[str, str] = {}
DEVICES = "train.used_devices"
NOT_SAVED = frozenset({"top.lang", "train.output_dir", "train.config_path", DEVICES})
EXTRA = "train.extra_args"
MODEL_NAME = "top.model_name"
CUSTOM = "Custom"


class Loaded(NamedTuple):
    """What a file puts into the form."""

    values: dict[str, Any]
    rest: tuple[str, ...] = ()
    """Keys without a field, which went into the further arguments."""
    unknown: tuple[str, ...] = ()
    """Entries that mean nothing here and were left out."""


def run_config(fields: Mapping[str, Field], values: Values, places: Places) -> dict[str, Any]:
    """Return the keys of the run that the form describes, in the order of a hand-written file."""
    config = place_checkpoints(read_form(fields, values), values, places)
    method = str(values.get("top.finetuning_type", "lora"))
    config |= {key: value for key, value in FIXED.items() if key not in config}
    config |= _derived(config, values)
    config |= read_extra(str(values.get(EXTRA) or ""))
    name = str(values.get("train.output_dir") or "")
    if "output_dir" not in config and name.strip():
        folder = places.run_dir(str(values.get(MODEL_NAME) or CUSTOM), method, name)
        config["output_dir"] = places.shown(folder)
    return config


def place_checkpoints(config: Mapping[str, Any], values: Values, places: Places) -> dict[str, Any]:
    """Put chosen checkpoints where they belong: they are adapters or, after whole models were tuned, the model."""
    placed = dict(config)
    method = str(values.get("top.finetuning_type", "lora"))
    checkpoints = placed.pop("adapter_name_or_path", None) or ()
    resolved = tuple(_checkpoint(places, values, method, name) for name in checkpoints)
    if method in WHOLE and resolved:
        placed["model_name_or_path"] = resolved[0]
    elif resolved:
        placed["adapter_name_or_path"] = resolved
    return placed


def read_extra(text: str) -> dict[str, Any]:
    """Read the field of further arguments: a JSON object, or YAML lines `key: value`."""
    stripped = text.strip()
    if not stripped:
        return {}
    loaded = load_flow(stripped)
    if not isinstance(loaded, dict):
        raise UserError(f'{shorten(stripped)!r} is not written as {{"key": value}}')
    return {str(key): value for key, value in cast("dict[Any, Any]", loaded).items()}


def command_line(
    config: Mapping[str, Any], command: str = "train", variables: Mapping[str, str] = NO_VARIABLES
) -> str:
    """Return a command that can be pasted into a shell and means just this configuration."""
    start = "".join(f"{name}={value} " for name, value in variables.items()) + f"llamafactory-cli {command}"
    words = [f"{key}={word_of(value)}" for key, value in config.items()]
    if _is_same(read_args(words), config):
        return " \\\n".join([start, *(f"  {shlex.quote(word)}" for word in words)])
    return f"cat > run.yaml <<'END_OF_FILE'\n{to_yaml(config)}END_OF_FILE\n{start} run.yaml"


def arguments_text(fields: Mapping[str, Field], values: Values) -> str:
    """Return what Save writes: every element of the form by its id, no secret."""
    kept: dict[str, Any] = {}
    for element, value in values.items():
        field = fields.get(element)
        is_secret = field.widget == "secret" if field else bool(SECRET_NAMES.search(element))
        if element in NOT_SAVED or is_secret:
            continue
        kept[element] = safe_extra(value) if element == EXTRA else value
    return "".join(f"{element}: {write_value(value)}\n" for element, value in kept.items())


def load_arguments(fields: Mapping[str, Field], path: Path, others: tuple[str, ...]) -> Loaded:
    """Read a saved form, or any configuration of a run; `others` are the ids of elements that are no form fields."""
    try:
        entries = read_entries(path.read_text(encoding="utf-8-sig"))
    except YamlError as error:
        raise UserError(f"{path.name}:{error.line}: not a valid configuration: {error}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path.name} cannot be read: {error}.") from None
    given = {entry.key: _plain(entry.raw) for entry in entries}
    if any(key.startswith(("top.", "train.")) for key in given):
        return _from_ids(fields, given, others)
    return from_config(fields, read_args({entry.key: entry.raw for entry in entries}))


def from_config(fields: Mapping[str, Field], config: Mapping[str, Any]) -> Loaded:
    """Return the form that a configuration stands for; keys without a field go into the further arguments."""
    open_keys = without_secrets(config)
    filled = fill_form(fields, {key: value for key, value in open_keys.items() if FIXED.get(key, ...) != value})
    values, rest = dict(filled.values), dict(filled.rest)
    folder = rest.pop("output_dir", None)
    values[MODEL_NAME] = CUSTOM
    if isinstance(folder, str):
        values["train.output_dir"] = folder
    values[EXTRA] = json.dumps(rest, ensure_ascii=False)
    return Loaded(values, tuple(rest), tuple(key for key in config if key not in open_keys))


def safe_extra(text: Any) -> str:
    """Return the further arguments without what must not stand in a file."""
    try:
        extra = read_extra(str(text or ""))
    except UserError:
        return "{}"
    return json.dumps(without_secrets(extra), ensure_ascii=False)


def _from_ids(fields: Mapping[str, Field], given: Mapping[str, Any], others: tuple[str, ...]) -> Loaded:
    values: dict[str, Any] = {}
    unknown: list[str] = []
    for element, raw in given.items():
        field = fields.get(element)
        if field is None:
            if element in others and element not in NOT_SAVED:
                values[element] = raw
            else:
                unknown.append(element)
        elif field.widget == "secret" or not _is_offered(field, value := _from_label(field, raw)):
            unknown.append(element)
        else:
            values[element] = value
    return Loaded(values, (), tuple(unknown))


def _from_label(field: Field, raw: Any) -> Any:
    """Return the value of a choice that was saved by its English label."""
    names = words_of(field.id, DEFAULT_LANGUAGE).get("choices", {})
    if raw is None:
        return [] if field.widget == "names" else UNSET
    if field.widget == "names" and not isinstance(raw, list):
        return [raw]
    if field.widget in ("text", "names_text", "product", "mapping"):
        return ",".join(map(str, raw)) if isinstance(raw, list) else _text(raw)
    return next((word for word, label in names.items() if label == raw), raw)


def _is_offered(field: Field, value: Any) -> bool:
    """Tell whether a widget takes a value from a file."""
    if field.widget == "switch":
        return isinstance(value, bool)
    if field.widget == "slider":
        return shows(field, value) or (value == 0 and field.zero_is_unset)
    if field.widget == "choice":
        words = {str(word).lower() if isinstance(word, bool) else word for word in (*field.choices, UNSET)}
        return value in words
    return True


def _checkpoint(places: Places, values: Values, method: str, name: str) -> str:
    """Return the path of a checkpoint that was picked from the runs of this model; other words stay as they are."""
    model = str(values.get(MODEL_NAME) or CUSTOM)
    try:
        folder = places.run_dir(model, method, name)
    except UserError:
        return name
    return places.shown(folder) if folder.is_dir() else name


def _derived(config: Mapping[str, Any], values: Values) -> dict[str, Any]:
    """Return what follows from other fields: evaluation where a part is held out, sampling in PPO."""
    found: dict[str, Any] = {}
    if config.get("val_size") and "eval_strategy" not in config:
        found["eval_strategy"] = "steps"
        found["eval_steps"] = config.get("eval_steps") or config.get("save_steps", 500)
        found["per_device_eval_batch_size"] = config.get(
            "per_device_eval_batch_size", config["per_device_train_batch_size"]
        )
    if config.get("stage") == "ppo":
        found |= PPO
    return found


def word_of(value: Any) -> str:
    """Write a value as it stands behind `key=` on a command line."""
    if isinstance(value, str):
        return value
    if isinstance(value, tuple) and all(isinstance(item, str) and "," not in item for item in value) and value:
        return ",".join(value)
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, ensure_ascii=False)
    return write_value(value)


def _is_same(read: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    params = list_params("train")
    wanted: dict[str, Any] = {}
    for key, value in config.items():
        settled = coerce(params[key], value) if key in params else value
        wanted[key] = value if isinstance(settled, ValueProblem) else settled
    return dict(read) == wanted


def _plain(raw: Any) -> Any:
    if isinstance(raw, list):
        return [_plain(item) for item in cast("list[Any]", raw)]
    return raw.value if hasattr(raw, "value") and hasattr(raw, "text") else raw


def _text(raw: Any) -> str:
    return str(raw).lower() if isinstance(raw, bool) else str(raw)
