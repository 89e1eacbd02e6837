"""The kinds of values that arguments hold. Bounds and secrecy stand in the type, so every surface sees them."""

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Interval


@dataclass(frozen=True)
class SecretMark:
    """Marks a value that is never printed, logged or saved."""


@dataclass(frozen=True)
class PluginMark:
    """Marks a text that a plug-in gave its meaning."""


Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
PartShare = Annotated[float, Interval(ge=0, lt=1)]
Steps = Annotated[int | float, Ge(0)]  # a count, or below 1 a share of the whole run
Names = tuple[str, ...]  # written "a,b" or as a list
Json = dict[str, Any]  # written as a mapping or as a JSON string
Secret = Annotated[str, SecretMark()]
PluginName = Annotated[str, PluginMark()]  # beside a Literal: the choices, or a name that a plug-in registers


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Base of all argument classes: frozen, and checked however an object is made."""

    def __post_init__(self) -> None:
        from .values import settle

        settle(self)
