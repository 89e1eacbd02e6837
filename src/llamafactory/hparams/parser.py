"""From what the user wrote to argument objects, with everything that is wrong reported at once.

Nothing here imports torch or transformers, so a mistake in a YAML file is told in a fraction of a second.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from ..extras.env import read_env, read_variable
from ..extras.errors import UserError
from ..extras.logging import get_logger, notice_once, redact
from ..extras.registry import nearest
from .config import SECRET_NAMES, RunConfig
from .data_args import DataArguments
from .evaluation_args import EvaluationArguments
from .finetuning_args import FinetuningArguments
from .generating_args import GeneratingArguments
from .kinds import Arguments
from .legacy import each_legacy, list_legacy
from .model_args import ModelArguments
from .pending import find_idle, find_pending, find_unplugged
from .reading import Given, read_given
from .resolve import derive
from .rules import check_rules
from .schema import COMMAND_CLASSES, Param, list_commands, list_params, secret_names
from .training_args import RayArguments, TrainingArguments
from .values import ValueProblem, coerce, plain, shorten
from .view import View, Violation, word
from .yamltext import Scalar


Args = Mapping[str, Any] | Sequence[str] | None
TrainArgs = tuple[ModelArguments, DataArguments, TrainingArguments, FinetuningArguments, GeneratingArguments]
InferArgs = tuple[ModelArguments, DataArguments, FinetuningArguments, GeneratingArguments]
EvalArgs = tuple[ModelArguments, DataArguments, EvaluationArguments, FinetuningArguments]


class Problem(NamedTuple):
    """One thing that is wrong with a configuration."""

    keys: tuple[str, ...]
    """The keys that it is about, under the names they were given."""
    message: str
    place: str = ""
    """Where they were given."""

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message


class ConfigError(UserError):
    """Everything that is wrong with a configuration, one line each."""

    def __init__(self, found: Sequence[Problem]) -> None:
        self.found = tuple(item._replace(message=redact(item.message)) for item in found)
        self.problems = tuple(redact(str(item)) for item in found)
        listing = "".join(f"\n  - {problem}" for problem in self.problems)
        many = f"The configuration has {len(found)} problems:{listing}"
        super().__init__(many if len(found) > 1 else self.problems[0])


def read_args(args: Args = None) -> dict[str, Any]:
    """Merge a file, overrides and flags (or take a dict) into one dict; nothing is refused here yet."""
    given = read_given(sys.argv[1:] if args is None else args)
    known = {name: param for command in COMMAND_CLASSES for name, param in list_params(command).items()}
    return {key: _typed(known.get(key), item.raw) for key, item in given.items()}


def get_train_args(args: Args = None) -> TrainArgs:
    """Return (model, data, training, finetuning, generating) arguments."""
    config = load_run_config(args, "train")
    return (
        config.get(ModelArguments),
        config.get(DataArguments),
        config.get(TrainingArguments),
        config.get(FinetuningArguments),
        config.get(GeneratingArguments),
    )


def get_infer_args(args: Args = None, command: str = "chat") -> InferArgs:
    """Return (model, data, finetuning, generating) arguments."""
    config = load_run_config(args, command)
    return (
        config.get(ModelArguments),
        config.get(DataArguments),
        config.get(FinetuningArguments),
        config.get(GeneratingArguments),
    )


def get_eval_args(args: Args = None) -> EvalArgs:
    """Return (model, data, evaluation, finetuning) arguments."""
    config = load_run_config(args, "eval")
    return (
        config.get(ModelArguments),
        config.get(DataArguments),
        config.get(EvaluationArguments),
        config.get(FinetuningArguments),
    )


def get_ray_args(args: Args = None) -> RayArguments:
    """Return the Ray keys of a training configuration; all others are left for the workers to check."""
    names = {item.name for item in fields(RayArguments)}
    given = read_given(sys.argv[1:] if args is None else args)
    return RayArguments(**{key: item.raw for key, item in given.items() if key in names})


def load_run_config(args: Args = None, command: str = "train", *, announce: bool = True) -> RunConfig:
    """Read, translate, check and derive; raise ConfigError with all that is wrong."""
    params = list_params(command)
    draft = _Draft(command, params)
    draft.read(read_given(sys.argv[1:] if args is None else args))
    draft.check()
    if draft.problems:
        raise ConfigError(draft.problems)

    config = draft.finish()
    if announce and draft.env.is_main_process:
        logger = get_logger(__name__)
        for notice in config.notices:
            notice_once(logger, notice)
    return config


def secret_variable(key: str) -> str:
    """Return the environment variable that a secret key may come from: LLAMAFACTORY_HF_HUB_TOKEN and so on."""
    return f"LLAMAFACTORY_{key.upper()}"


class _Draft:
    """A configuration while it is being checked."""

    def __init__(self, command: str, params: Mapping[str, Param]) -> None:
        self.command = command
        self.params = params
        self.env = read_env()
        self.values: dict[str, Any] = {key: item.default for key, item in params.items() if not item.is_required}
        self.given: dict[str, Given] = {}
        self.wrong: set[str] = set()
        self.problems: list[Problem] = []
        self.notices: list[str] = []

    def read(self, everything: Mapping[str, Given]) -> None:
        """Take over every key that was given, under its present name and with its type."""
        old = {given.key for given, _ in each_legacy(everything)}
        self.given = {key: item for key, item in everything.items() if key not in old}
        self._translate(everything)
        for key, item in list(self.given.items()):
            if key not in self.params:
                del self.given[key]
                self._unknown(item)
                continue
            value = coerce(self.params[key], item.raw)
            if isinstance(value, ValueProblem):
                self.wrong.add(key)
                self.problems.append(Problem((key,), f"{key} {value.message}", item.place))
            else:
                self.values[key] = value
        self._read_secrets()

    def check(self) -> None:
        """Add all violations between keys."""
        for key, param in self.params.items():
            if param.is_required and key not in self.given:
                self.wrong.add(key)
                self.problems.append(Problem((key,), f"{key} is missing; set it ({param.help.rstrip('.')})"))
            elif param.is_required and key not in self.wrong and self.values[key] in (None, ""):
                self.wrong.add(key)
                message = f"{key} has no value; set it ({param.help.rstrip('.')})"
                self.problems.append(Problem((key,), message, self.given[key].place))
        settled = {key: value for key, value in self.values.items() if key not in self.wrong}
        view = View(self.command, settled, self.wrong, self.env)
        unusable = (
            *find_pending(self.params, settled, self.given),
            *find_unplugged(self.params, settled, self.given),
        )
        for violation in (*unusable, *check_rules(view)):
            self.problems.append(self._located(violation))

    def finish(self) -> RunConfig:
        """Derive what follows and build the argument objects."""
        view = View(self.command, self.values, (), self.env, self.given)
        self.notices.extend(find_idle(self.command, self.params, self.values, self.given))
        derived = derive(view)
        values = {**self.values, **derived}
        sources = {key: self.given[key].place if key in self.given else "default" for key in self.params}
        sources.update(dict.fromkeys(derived, "derived"))
        objects = tuple(_build(cls, values) for cls in COMMAND_CLASSES[self.command])
        return RunConfig(self.command, objects, sources, tuple(self.notices))

    def _translate(self, everything: Mapping[str, Given]) -> None:
        for old, translation in each_legacy(everything):
            if translation.problem:
                self.problems.append(Problem((old.key,), translation.problem, old.place))
                self.wrong.update(translation.given)
                continue
            if translation.notice:
                self.notices.append(f"{old.place}: {translation.notice}")
            for key, raw in translation.given.items():
                self._put(old, key, raw, wins=translation.wins)

    def _put(self, old: Given, key: str, raw: Any, *, wins: bool) -> None:
        before = None if wins else self.given.get(key)
        if before is not None and _both_mappings(before.raw, raw):
            raw = {**raw, **before.raw}
        elif before is not None and before.rank > old.rank:
            return
        elif before is not None and before.rank == old.rank and key != old.key and plain(before.raw) != plain(raw):
            message = f"{old.key} means {key}, which has another value at {before.place}; remove one of them"
            self.problems.append(Problem((old.key, key), message, old.place))
            return
        place = old.place if key == old.key else f"{old.place} ({old.key})"
        self.given[key] = Given(key, raw, place, old.rank)

    def _unknown(self, item: Given) -> None:
        owners = list_commands(item.key)
        if owners:
            commands = " and ".join(f"`{owner}`" for owner in owners)
            message = f"{item.key} belongs to the command {commands}, not to `{self.command}`; remove it"
        else:
            near = nearest(item.key, [*self.params, *list_legacy()])
            hint = f"did you mean {' or '.join(near)}?" if near else "remove it"
            message = f"unknown key {item.key}{_shown(item)}; {hint}"
        if self.env.allow_extra_args:
            self.notices.append(f"{item.place}: {message} (ignored, because ALLOW_EXTRA_ARGS is set)")
        else:
            self.problems.append(Problem((item.key,), message, item.place))

    def _located(self, violation: Violation) -> Problem:
        places = dict.fromkeys(self.given[key].place for key in violation.keys if key in self.given)
        return Problem(violation.keys, violation.message, ", ".join(places))

    def _read_secrets(self) -> None:
        """Take tokens and keys that are not given from the environment, so that they need not stand in a file."""
        for key in secret_names(self.command):
            text = "" if key in self.given else read_variable(secret_variable(key)).strip()
            if text:
                self.given[key] = Given(key, text, secret_variable(key))
                self.values[key] = text


def _typed(param: Param | None, raw: Any) -> Any:
    """Return the value of a known key, and what YAML makes of any other."""
    value = ValueProblem("") if param is None else coerce(param, raw)
    if not isinstance(value, ValueProblem):
        return value
    return raw.value if isinstance(raw, Scalar) else plain(raw)


def _shown(item: Given) -> str:
    """Repeat the value of an unknown key, unless the key sounds like a secret."""
    return "" if SECRET_NAMES.search(item.key) else f": {shorten(word(plain(item.raw)))}"


def _both_mappings(one: Any, other: Any) -> bool:
    return isinstance(one, dict) and isinstance(other, dict)


def _build(cls: type[Arguments], values: Mapping[str, Any]) -> Arguments:
    return cls(**{item.name: values[item.name] for item in fields(cls)})
