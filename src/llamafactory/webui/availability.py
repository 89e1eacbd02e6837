"""What of the form can be used with what is chosen now, judged by the very rules and tables that the parser reads.

Every switch and every choice is tried against the rules; what they would refuse is greyed out, with their sentence as
the reason. So the page has no list of its own of what goes with what.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..extras.env import Env, read_env
from ..extras.packages import is_available
from ..hparams.optimizers import family_of
from ..hparams.pending import find_pending, find_unbuilt, idle_switch, is_idle
from ..hparams.quantizers import QUANTIZERS
from ..hparams.rules import check_rules
from ..hparams.schema import Param, list_params
from ..hparams.values import ValueProblem, coerce
from ..hparams.view import View, Violation
from .composites import COMPOSITES
from .exchange import read_form, typed
from .layout import UNSET, Field, list_groups


FREE = frozenset({"stage", "eval_strategy"})
"""Always all on offer: what such a choice asks for in turn is said when the form is checked."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How one field stands."""

    reason: str = ""
    """Why it cannot be used; empty when it can."""
    is_idle: bool = False
    """A switch beside it, in its own group, is off: it is greyed out."""
    is_hidden: bool = False
    """It belongs to another stage or method."""
    refused: tuple[Any, ...] = ()
    """Choices that are not on offer."""

    @property
    def is_usable(self) -> bool:
        return not (self.reason or self.is_idle)


def judge(fields: Mapping[str, Field], values: Mapping[str, Any], command: str = "train") -> dict[str, Standing]:
    """Return how every field stands with the values of the form, by element id."""
    trial = _Trial(fields, values, command)
    return {field.id: trial.judge(field) for field in fields.values()}


def missing_package(field: Field, word: Any) -> str:
    """Say what to install for a choice; "" where nothing is missing."""
    if field.name == "quantization_method" and word in QUANTIZERS:
        row: Any = QUANTIZERS[word]
    elif field.name == "optim":
        row = family_of(str(word))
    else:
        return ""
    if row is None or row.package is None or is_available(row.package):
        return ""
    return f'pip install "llamafactory[{row.needs}]"' if row.needs else row.package


class _Trial:
    """The form as it is, and what the rules would say about one change."""

    def __init__(self, fields: Mapping[str, Field], values: Mapping[str, Any], command: str) -> None:
        self.command = command
        self.params = list_params(command)
        self.values = values
        self.env: Env = read_env()
        config = read_form(fields, values, command)
        checked = {key: _settled(self.params.get(key), value) for key, value in config.items()}
        self.wrong = {key for key, value in checked.items() if isinstance(value, ValueProblem)}
        defaults = {key: None if param.is_required else param.default for key, param in self.params.items()}
        self.effective = defaults | {key: value for key, value in checked.items() if key not in self.wrong}
        self.before = set(self._violations(self.effective, ()))
        self.groups = {field.id: _neighbours(field) for field in fields.values()}

    def judge(self, field: Field) -> Standing:
        unbuilt = [find_unbuilt(self.params[key]) for key in field.keys]
        if all(unbuilt):
            return Standing(reason=unbuilt[0])
        switch = self._idle_switch(field)
        if switch is not None:
            is_beside = switch in self.groups[field.id] and not is_idle(
                self.command, self.params[switch], self.effective
            )
            return Standing(is_idle=True, is_hidden=not is_beside)
        if field.widget == "switch":
            return self._judge_switch(field)
        if field.widget in ("choice", "open") and field.key not in FREE:
            current = self.values.get(field.id)
            words = (word for word in field.choices if word not in (UNSET, current))
            return Standing(refused=tuple(word for word in words if self._refusal(field, word)))
        return Standing()

    def _judge_switch(self, field: Field) -> Standing:
        is_on = bool(self.values.get(field.id))
        return Standing(reason="" if is_on else self._refusal(field, True))

    def _idle_switch(self, field: Field) -> str | None:
        switches = [idle_switch(self.command, self.params[key], self.effective) for key in field.keys]
        return switches[0] if all(switch is not None for switch in switches) else None

    def _refusal(self, field: Field, value: Any) -> str:
        """Return why the rules refuse a value that they do not refuse now."""
        written = self._written(field, value)
        changed = self.effective | written
        for violation in self._violations(changed, tuple(written)):
            if violation not in self.before and set(violation.keys) & set(field.keys):
                return violation.message
        return ""

    def _written(self, field: Field, value: Any) -> dict[str, Any]:
        if field.param is not None:
            return {field.key: typed(field, value)}
        defaults = {key: self.params[key].default for key in field.keys}
        by_name = {**{key.partition(".")[2]: item for key, item in self.values.items()}, field.name: value}
        return defaults | COMPOSITES[field.name].write(value, by_name)

    def _violations(self, values: Mapping[str, Any], given: tuple[str, ...]) -> Iterator[Violation]:
        yield from find_pending(self.params, values, given)
        yield from check_rules(View(self.command, values, self.wrong, self.env))


def _settled(param: Param | None, value: Any) -> Any:
    return value if param is None else coerce(param, value)


def _neighbours(field: Field) -> frozenset[str]:
    return frozenset(name for group in list_groups(field.tab) if field.name in group.names for name in group.names)
