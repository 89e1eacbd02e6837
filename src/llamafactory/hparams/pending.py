"""Keys that cannot do anything: because this version lacks the capability, or because their switch is off."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ..extras.registry import nearest
from .schema import Param
from .tables import load_table
from .values import describe
from .view import Violation, word


def find_pending(params: Mapping[str, Param], values: Mapping[str, Any], given: Collection[str]) -> list[Violation]:
    """Refuse every given key that asks for a capability this version does not have."""
    table = load_table("pending.toml")
    violations: list[Violation] = []
    for name in given:
        param = params[name]
        row = table["keys"].get(name) or table["groups"].get(param.group)
        if row is None or name not in values or values[name] == param.default:
            continue
        if "values" not in row or values[name] in row["values"]:
            message = f"{name}: {word(values[name])} is not in this version yet ({row['what']}); remove it"
            violations.append(Violation((name,), message))
    return violations


def find_unplugged(
    params: Mapping[str, Param], values: Mapping[str, Any], given: Collection[str]
) -> Iterator[Violation]:
    """Refuse names that only a plug-in could explain, where no plug-in is given."""
    if values.get("plugins"):
        return
    for name in given:
        param = params[name]
        if param.is_open and name in values and values[name] not in param.choices:
            near = nearest(str(values[name]), [str(choice) for choice in param.choices], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            yield Violation((name,), f"{name} is {str(values[name])!r} but must be {describe(param)}{hint}")


def find_idle(
    command: str, params: Mapping[str, Param], values: Mapping[str, Any], given: Collection[str]
) -> Iterator[str]:
    """Say which given keys have no effect: their switch is off, or another command reads them."""
    for row in load_table("needs.toml")["needs"]:
        idle = [name for name in given if _belongs(row, params[name]) and values.get(name) != params[name].default]
        reason = _reason(row, command, values)
        if idle and reason:
            yield f"{', '.join(idle)} {'has' if len(idle) == 1 else 'have'} no effect {reason}"


def is_idle(command: str, param: Param, values: Mapping[str, Any]) -> bool:
    """Tell whether a key does nothing, whatever its value."""
    return idle_switch(command, param, values) is not None


def idle_switch(command: str, param: Param, values: Mapping[str, Any]) -> str | None:
    """Return the key whose value keeps a key from doing anything ("" when it is the command); None where it counts."""
    rows = (row for row in load_table("needs.toml")["needs"] if _belongs(row, param))
    return next((row.get("key", "") for row in rows if _reason(row, command, values)), None)


def find_unbuilt(param: Param) -> str:
    """Say which capability that this version lacks a key asks for, whatever its value; "" for one that works."""
    table = load_table("pending.toml")
    row = table["keys"].get(param.name) or table["groups"].get(param.group)
    return "" if row is None or "values" in row else row["what"]


def _reason(row: Mapping[str, Any], command: str, values: Mapping[str, Any]) -> str:
    """Say why the keys of a row do nothing; "" when they do something."""
    if "commands" in row:
        owners = " and ".join(f"`{owner}`" for owner in row["commands"])
        return "" if command in row["commands"] else f"in `{command}`: {owners} would read it"
    switch = row["key"]
    if switch not in values or _is_on(row, values[switch]):
        return ""
    return f"with {switch}: {word(values[switch])}"


def _is_on(row: Mapping[str, Any], value: Any) -> bool:
    return value in row["values"] if "values" in row else value is not None


def _belongs(row: Mapping[str, Any], param: Param) -> bool:
    if param.name == row.get("key"):
        return False
    return param.name in row.get("names", ()) or param.group == row.get("group")
