"""A job begins, goes on, waits, or is taken out of the queue."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...extras.env import read_env
from ...extras.errors import UserError
from ...extras.logging import redact
from ...hparams.config import SECRET_NAMES, write_value
from ...hparams.parser import read_args, secret_variable
from ..places import Places, confine, read_places
from .checking import JobError, Problem, find_problems, split_secrets
from .devices import list_devices
from .files import CONFIG_FILES, FORM_FILE, OUTPUT_FILE, write_atomically
from .outcome import saved_step
from .processes import SECRET_PREFIX
from .queue import enqueue, wake
from .record import HUB_VARIABLES, Record, forget_stop, lock, read_record, write_record
from .state import is_active, supervise


MAX_PROCESSES = 1024


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a job is started, beside what it does."""

    run_dir: Path | str | None = None
    """Its folder; None takes output_dir of the values."""
    command: str = "train"
    """train (which also evaluates and predicts), export or eval."""
    form: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the page showed, kept so that it can be shown again."""
    devices: tuple[int, ...] = ()
    """Accelerators by number; empty for all."""
    processes: int | None = None
    """Workers that train together; None for one on each device."""
    hub: str = ""
    """Where ids are looked up: huggingface, modelscope or openmind; empty for the server's own choice."""
    queued: bool = False
    """Whether it waits until running jobs leave its devices."""


@dataclass(frozen=True)
class Run:
    """A job that was started."""

    run_id: str
    """The path of its folder below the folder of all runs."""
    run_dir: Path


def start(values: Mapping[str, Any], options: Options | None = None, *, places: Places | None = None) -> Run:
    """Check a job, write its files and let it begin; JobError tells everything that is wrong."""
    options, places = options or Options(), places or read_places(read_env())
    run_dir, values = _place(values, options, places)
    problems = [*_refusals(run_dir, options), *find_problems(values, options.command, places)]
    kept, secret = split_secrets(values, options.command)
    problems += _waiting_secrets(secret, options)
    if problems:
        raise JobError(problems)

    record = Record(
        command=options.command,
        root=str(places.saves.resolve()),
        cwd=str(places.work),
        created=time.time(),
        phase="queued" if options.queued else "starting",
        devices=tuple(options.devices),
        processes=options.processes,
        hub=options.hub,
    )
    files = {
        CONFIG_FILES[options.command]: _to_yaml(kept, options.command),
        FORM_FILE: _form_yaml(options.form, secret),
    }
    return _begin(run_dir, record, secret, files)


def resume(
    run_dir: Path,
    changes: Mapping[str, Any] | None = None,
    *,
    queued: bool = False,
    places: Places | None = None,
) -> Run:
    """Let a job that was stopped or failed go on from its newest checkpoint, or begin again where it has none.

    A finished one goes on when `changes` give it more to do (num_train_epochs, max_steps). Secrets are given anew.
    """
    places = places or read_places(read_env())
    record = read_record(run_dir)
    if record is None:
        raise UserError(f"{places.shown(run_dir)} was not started by the board, so it cannot be started again by it.")
    config = {**read_args([str(run_dir / CONFIG_FILES[record.command])]), **(changes or {})}
    goes_on = record.command == "train" and config.get("do_train") is True and saved_step(run_dir) is not None
    checked = {**config, "overwrite_output_dir": False, "resume_from_checkpoint": True} if goes_on else config
    options = Options(command=record.command, queued=queued)
    kept, secret = split_secrets(config, record.command)
    problems = [*find_problems(checked, record.command, places), *_waiting_secrets(secret, options)]
    if problems:
        raise JobError(problems)

    again = Record(
        command=record.command,
        root=str(places.saves.resolve()),
        cwd=str(places.work),
        created=time.time(),
        phase="queued" if queued else "starting",
        devices=record.devices,
        processes=record.processes,
        hub=record.hub,
        goes_on=goes_on,
    )
    return _begin(run_dir, again, secret, {CONFIG_FILES[record.command]: _to_yaml(kept, record.command)})


def _place(values: Mapping[str, Any], options: Options, places: Places) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a job, inside the folder of all runs, and the values that name it."""
    if options.command not in CONFIG_FILES:
        raise UserError(
            f"{options.command!r} cannot be started from the board; it is one of {', '.join(CONFIG_FILES)}."
        )
    if options.hub not in HUB_VARIABLES:
        raise UserError(f"{options.hub!r} is no hub; choose one of {', '.join(filter(None, HUB_VARIABLES))}.")
    wanted = str(options.run_dir or values.get("output_dir") or "").strip()
    if not wanted:
        raise JobError([Problem(("output_dir",), "output_dir is missing; name the folder of the run")])
    try:
        run_dir = confine(places.work / Path(wanted).expanduser(), (places.saves,), "output folder", wanted)
    except UserError as error:
        raise JobError([Problem(("output_dir",), str(error))]) from None
    below = run_dir.relative_to(places.saves.resolve()).parts
    if not below or any(part.startswith((".", "_")) or not part.isprintable() for part in below):
        message = f"output_dir {wanted!r} does not name a run: every part of it begins with a letter or digit"
        raise JobError([Problem(("output_dir",), message)])
    if options.command == "train":
        return run_dir, {**values, "output_dir": places.shown(run_dir)}
    return run_dir, {key: value for key, value in values.items() if key != "output_dir"}


def _refusals(run_dir: Path, options: Options) -> list[Problem]:
    if run_dir.exists() and not run_dir.is_dir():
        return [Problem(("output_dir",), f"output_dir {run_dir.name!r} is a file; choose another name")]
    if is_active(run_dir):
        return [_in_use(run_dir)]
    known = [device.index for device in list_devices()] if options.devices else []
    unknown = [index for index in options.devices if index not in known]
    if unknown:
        message = f"devices: there is no accelerator {unknown[0]}; this machine has {known or 'none'}"
        return [Problem(("devices",), message)]
    if options.processes is not None and not 1 <= options.processes <= MAX_PROCESSES:
        return [Problem(("processes",), f"processes is {options.processes}; it is 1 to {MAX_PROCESSES}")]
    if options.command != "train" and read_record(run_dir) is not None:
        return [Problem(("output_dir",), f"{run_dir.name!r} already holds a job; choose another name")]
    return []


def _in_use(run_dir: Path) -> Problem:
    return Problem(("output_dir",), f"A job runs or waits in {run_dir.name!r}; stop it first, or choose another name")


def _waiting_secrets(secret: Mapping[str, str], options: Options) -> list[Problem]:
    if not (secret and options.queued):
        return []
    names = ", ".join(secret_variable(key) for key in secret)
    message = (
        f"{', '.join(secret)}: a job in the queue would have to write this down; set {names} in the environment of "
        "the server, or start the job at once"
    )
    return [Problem(tuple(secret), message)]


def _begin(run_dir: Path, record: Record, secret: Mapping[str, str], files: Mapping[str, str]) -> Run:
    """Write the files of a job and let it begin, unless somebody else has taken the folder meanwhile."""
    root = Path(record.root)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {str(run_dir)!r} cannot be made: {error.strerror}.") from None
    if is_active(run_dir):
        raise JobError([_in_use(run_dir)])
    before = read_record(run_dir)
    record = replace(record, output_start=_output_size(run_dir))
    with lock(run_dir):
        if read_record(run_dir) != before:
            raise JobError([_in_use(run_dir)])
        for name, text in files.items():
            write_atomically(run_dir / name, text)
        forget_stop(run_dir)
        write_record(run_dir, record)
    if record.phase == "queued":
        enqueue(root, run_dir)
        wake(root)
    else:
        supervise(run_dir, record, variables={f"{SECRET_PREFIX}{key.upper()}": text for key, text in secret.items()})
    return Run(run_dir.relative_to(root).as_posix(), run_dir)


def _output_size(run_dir: Path) -> int:
    path = run_dir / OUTPUT_FILE
    return path.stat().st_size if path.is_file() else 0


def _to_yaml(values: Mapping[str, Any], command: str) -> str:
    lines = [f"# Started from the board; repeat it with `llamafactory-cli {command} <this file>`."]
    return "\n".join([*lines, *(f"{key}: {write_value(value)}" for key, value in values.items())]) + "\n"


def _form_yaml(form: Mapping[str, Any], secret: Mapping[str, str]) -> str:
    """Write what the page showed, without anything that is secret."""
    kept = {
        key: value
        for key, value in form.items()
        if not SECRET_NAMES.search(key) and value not in secret.values() and redact(str(value)) == str(value)
    }
    return "".join(f"{write_value(key)}: {write_value(value)}\n" for key, value in kept.items()) or "{}\n"
