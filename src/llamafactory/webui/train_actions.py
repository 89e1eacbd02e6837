"""What the buttons of the Train tab do, on values by element id: no gradio in here, so tests call it directly."""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..extras.env import child_environment, is_enabled
from ..extras.errors import UserError
from ..extras.logging import redact
from ..hparams.schema import list_params
from . import jobs
from .arguments import (
    CUSTOM,
    DEVICES,
    EXTRA,
    MODEL_NAME,
    Loaded,
    arguments_text,
    command_line,
    load_arguments,
    read_extra,
    run_config,
    safe_extra,
    word_of,
)
from .exchange import to_yaml, without_secrets
from .jobs.devices import device_variables
from .jobs.files import FORM_FILE
from .jobs.record import HUB_VARIABLES
from .layout import Field
from .markup import notice
from .places import Places
from .wording import say


PLAN_SECONDS = 120
Problems = list[tuple[tuple[str, ...], str]]


class Checked(NamedTuple):
    """The configuration that the form stands for, and what is wrong with it."""

    config: dict[str, Any]
    problems: Problems


class Form:
    """The form of the Train tab and the folders it works in."""

    def __init__(self, fields: Mapping[str, Field], places: Places) -> None:
        self.fields = fields
        self.places = places

    def check(self, values: Mapping[str, Any], language: str) -> Checked:
        """Build the configuration and collect all problems, those that only a page must see to among them."""
        missing = _missing(values, language)
        try:
            config = run_config(self.fields, values, self.places)
        except UserError as error:
            return Checked({}, [*missing, (_keys_of(values), _explain(error, values, language))])
        found = [(problem.keys, problem.message) for problem in jobs.find_problems(config, "train", self.places)]
        told = {key for keys, _ in missing for key in keys}
        return Checked(config, [*missing, *(item for item in found if not set(item[0]) & told)])

    def preview(self, config: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[str, str]:
        """Return the YAML of a run and the command that starts just that run."""
        shown = without_secrets(config)
        return to_yaml(shown), command_line(shown, variables=self.variables(values))

    def variables(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Return the environment that the form asks for beside that of the server: hub and devices."""
        hub = {
            name: value for name, value in HUB_VARIABLES[hub_of(values)].items() if (value == "1") != is_enabled(name)
        }
        return hub | device_variables(devices_of(values), None)

    def start(self, values: Mapping[str, Any], config: Mapping[str, Any], *, queued: bool = False) -> jobs.Run:
        """Start a run (or queue it) and return its place; it needs nobody to look after it."""
        secrets = {
            field.key: values[element]
            for element, field in self.fields.items()
            if field.widget == "secret" and values.get(element)
        }
        form = {key: value for key, value in values.items() if not _is_secret(self.fields.get(key))}
        options = jobs.Options(form=form, queued=queued, hub=hub_of(values), devices=devices_of(values))
        return jobs.start({**config, **secrets}, options, places=self.places)

    def save(self, values: Mapping[str, Any], name: str) -> str:
        """Write the form to a file and return the file's name."""
        path = self.places.arguments_file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(arguments_text(self.fields, values), encoding="utf-8")
        return path.name

    def load(self, name: str, language: str, others: tuple[str, ...]) -> Loaded:
        """Read a saved form or a configuration of a run."""
        path = self.places.arguments_file(name)
        if not path.is_file():
            raise UserError(say("err_config_not_found", language, name=name))
        return load_arguments(self.fields, path, others)

    def kept(self, values: Mapping[str, Any], name: str) -> Loaded | None:
        """Return what the page showed when a run was started; None for a folder that holds no such thing."""
        try:
            model, method = str(values.get(MODEL_NAME) or CUSTOM), str(values.get("top.finetuning_type"))
            path = self.places.run_dir(model, method, name) / FORM_FILE
            return load_arguments(self.fields, path, (MODEL_NAME, EXTRA)) if path.is_file() else None
        except UserError:
            return None

    def plan(self, config: Mapping[str, Any], values: Mapping[str, Any], language: str) -> dict[str, Any]:
        """Ask the command `plan` what the run will need; UserError where it has no answer."""
        words = [sys.executable, "-m", "llamafactory.cli", "plan", "--json"]
        words += [f"{key}={value}" for key, value in _plan_words(config).items()]
        try:
            done = subprocess.run(
                words,
                cwd=self.places.work,
                env=child_environment(**self.variables(values)),
                capture_output=True,
                text=True,
                timeout=PLAN_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise UserError(say("err_plan", language, reason=f"> {PLAN_SECONDS} s")) from None
        lines = done.stderr.strip().splitlines()
        if done.returncode != 0:
            raise UserError(say("err_plan", language, reason=redact(lines[-1]) if lines else str(done.returncode)))
        try:
            return dict(json.loads(done.stdout))
        except ValueError:
            raise UserError(say("err_plan", language, reason=done.stdout[:200])) from None


def kept_values(fields: Mapping[str, Field], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the visitor's own browser keeps of the form: all but secrets."""
    kept = {key: value for key, value in values.items() if not _is_secret(fields.get(key)) and key != "top.lang"}
    return kept | ({EXTRA: safe_extra(kept[EXTRA])} if EXTRA in kept else {})


def hub_of(values: Mapping[str, Any]) -> str:
    """Return the hub that the form names, as jobs call it."""
    hub = str(values.get("top.hub_name") or "")
    return hub if hub in HUB_VARIABLES else ""


def devices_of(values: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the accelerators that the form names; none stands for all."""
    chosen = values.get(DEVICES) or ()
    if not isinstance(chosen, list | tuple) or not all(type(item) is int for item in chosen):
        raise UserError(f"{chosen!r} are no devices; choose them by number.")
    return tuple(sorted(set(chosen)))


def problem_notice(problems: Problems, language: str) -> str:
    """Return the list of everything that is wrong, or the sentence that nothing is."""
    if not problems:
        return notice(say("info_valid", language), "good")
    items = list(dict.fromkeys(message for _, message in problems))
    return notice(say("err_problems", language, count=len(items)), "problem", items)


def loaded_notice(loaded: Loaded, name: str, language: str) -> str:
    """Say what was loaded, what went into the further arguments, and what was left out."""
    items = [say("info_into_extra", language, keys=", ".join(loaded.rest))] if loaded.rest else []
    items += [say("info_not_ours", language, keys=", ".join(loaded.unknown))] if loaded.unknown else []
    return notice(say("info_config_loaded", language, name=name), "warning" if loaded.unknown else "good", items)


def other_keys(fields: Mapping[str, Field]) -> list[str]:
    """Return the keys that have no field of their own and no secret value."""
    own = {key for field in fields.values() for key in field.keys} | {"output_dir"}
    return [key for key, param in list_params("train").items() if key not in own and not param.is_secret]


def add_key(text: str, key: str) -> str:
    """Return the further arguments with one more key at its default."""
    param = list_params("train")[key]
    extra = read_extra(text)
    extra.setdefault(key, None if param.is_required else param.default)
    return json.dumps(extra, ensure_ascii=False)


def _missing(values: Mapping[str, Any], language: str) -> Problems:
    """Say what everybody has to choose, in the visitor's language and before the parser does."""
    asked = (
        ("top.model_path", "model_name_or_path", "err_no_path"),
        ("train.dataset", "dataset", "err_no_dataset"),
        ("train.output_dir", "output_dir", "err_no_output_dir"),
    )
    extra = str(values.get(EXTRA) or "")
    return [
        ((key,), say(message, language))
        for element, key, message in asked
        if not values.get(element) and f"{key}" not in extra
    ]


def _keys_of(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the key that building a configuration can fail at: the folder; else the further arguments."""
    try:
        read_extra(str(values.get(EXTRA) or ""))
    except UserError:
        return ("extra_args",)
    return ("output_dir",)


def _explain(error: UserError, values: Mapping[str, Any], language: str) -> str:
    if _keys_of(values) == ("extra_args",):
        return say("err_json_schema", language, reason=str(error))
    return str(error)


def _plan_words(config: Mapping[str, Any]) -> dict[str, str]:
    return {key: word_of(value) for key, value in without_secrets(config).items()}


def _is_secret(field: Field | None) -> bool:
    return field is not None and field.widget == "secret"
