"""Everything that is wrong with a job before it starts, each with the keys that it is about.

The parser of the command line decides; added to it is what only a page must see to: paths stay inside the folders of
the board, and nothing secret is written down.
"""

import functools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...extras.errors import UserError
from ...extras.logging import redact
from ...hparams import TrainingArguments
from ...hparams.config import SECRET_NAMES, RunConfig
from ...hparams.parser import ConfigError, load_run_config
from ...hparams.schema import list_params, secret_names
from ...train.run_plan import RESULTS, plan_run
from ..places import Places, confine


HUBS = ("ONLINE", "REMOTE:")
"""What dataset_dir may begin with instead of a path."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, for the fields of `keys`."""

    keys: tuple[str, ...]
    message: str


class JobError(UserError):
    """A job that cannot be started, with all the reasons."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problem.message for problem in problems))


def find_problems(values: Mapping[str, Any], command: str, places: Places) -> list[Problem]:
    """Return all that is wrong with the values of a job; nothing is written, printed or raised."""
    problems = [*_written_secrets(values, command), *find_stray_paths(values, places)]
    try:
        config = load_run_config(values, command, announce=False)
    except ConfigError as error:
        return [*problems, *(Problem(item.keys, item.message) for item in error.found)]
    except UserError as error:
        return [*problems, Problem((), redact(str(error)))]
    return [*problems, *_folder(config, command, places)]


def split_secrets(values: Mapping[str, Any], command: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values that may be written, and the secret ones, which only the command itself may see."""
    names = secret_names(command)
    open_values = {key: value for key, value in values.items() if key not in names}
    return open_values, {key: str(values[key]) for key in names if values.get(key)}


def _written_secrets(values: Mapping[str, Any], command: str) -> Iterator[Problem]:
    """Find tokens where they would be written down: in ordinary fields, and inside mappings."""
    for key, value in values.items():
        if key in secret_names(command):
            continue
        if key not in list_params(command) and SECRET_NAMES.search(key):
            yield Problem((key,), f"{key} is no key of `{command}`, and sounds like something secret; remove it")
        if redact(str(value)) != str(value):
            yield Problem((key,), f"{key} holds what looks like an access token; put it into a field made for tokens")
        for name in _inner_names(value):
            if SECRET_NAMES.search(name):
                message = f"{key} holds {name}, which would be written to a file; set it in the server's environment"
                yield Problem((key,), message)


def _inner_names(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(item, str) and item:  # a number of tokens is no token
                yield str(key)
            yield from _inner_names(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _inner_names(item)


@functools.cache
def _path_keys() -> dict[str, list[str]]:
    return tomllib.loads(Path(__file__).with_name("paths.toml").read_text(encoding="utf-8"))


def find_stray_paths(values: Mapping[str, Any], places: Places) -> Iterator[Problem]:
    """Find paths that lead out of the folders of the board."""
    for kind, keys in _path_keys().items():
        roots = (places.saves,) if kind == "saves" else places.roots
        for key in keys:
            for text in _words(values.get(key)):
                path = places.work / Path(text).expanduser()
                if (key == "dataset_dir" and text.startswith(HUBS)) or (kind == "roots_if_there" and not _lies(path)):
                    continue
                try:
                    confine(path, roots, key, text)
                except UserError as error:
                    yield Problem((key,), str(error))


def _words(value: Any) -> Iterator[str]:
    """Yield what may be a path in a value: a text, or each part of a list."""
    if isinstance(value, str):
        yield from (part.strip().partition(":")[0] if ".py:" in part else part.strip() for part in value.split(","))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _words(item)


def _lies(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return True  # no path at all: confine says so


def _folder(config: RunConfig, command: str, places: Places) -> Iterator[Problem]:
    """Say why the output folder cannot be used: it holds a finished run, or something else."""
    if command != "train":
        return
    training = config.get(TrainingArguments)
    folder = places.work / Path(training.output_dir).expanduser()
    try:
        plan_run(replace(training, output_dir=str(folder)))
    except UserError as error:
        yield Problem(("output_dir",), str(error))
        return
    if not training.do_train and not training.overwrite_output_dir:
        found = next((name for name in RESULTS if (folder / name).is_file()), None)
        if found is not None:
            message = f"output_dir {training.output_dir!r} already holds results ({found}); choose another name"
            yield Problem(("output_dir",), message)
