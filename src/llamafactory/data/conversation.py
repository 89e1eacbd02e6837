"""The one dialogue type: rows are read into it, requests are turned into it, templates make tokens of it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from .media.medium import Medium


class Role(StrEnum):
    """Who speaks. `function` is an assistant turn that calls tools; `observation` is what a tool answered."""

    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"
    FUNCTION = "function"
    OBSERVATION = "observation"


RESPONSE_ROLES = frozenset({Role.ASSISTANT, Role.FUNCTION})
ROLE_ALIASES = {"tool": Role.OBSERVATION, "developer": Role.SYSTEM}


class RowDropped(ValueError):  # noqa: N818  (a verdict on a row, counted in the report, not a failure of the run)
    """A row that cannot be used; the text is the reason under which it is counted."""


class RowOverlong(RowDropped):
    """A row of which nothing that can be learned stands within cutoff_len."""


class FieldError(ValueError):
    """A field of the wrong type; whoever knows the file and the row adds them."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `loss` overrules which response turns are learned, and how much: None leaves it to the settings."""

    role: Role
    content: str
    loss: bool | float | None = None
    """True or 1: learned; false or 0: not; another number: learned, and each token's loss is multiplied by it."""
    parts: tuple[str | Medium, ...] = ()
    """The same with the images, sounds and videos at their places; empty where there are none."""

    @property
    def media(self) -> tuple[Medium, ...]:
        """The images, sounds and videos, in order."""
        return tuple(part for part in self.parts if isinstance(part, Medium))


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order; the system prompt and the tools (a JSON list, or "") stand apart from them."""

    messages: tuple[Message, ...]
    system: str = ""
    tools: str = ""
    rejected: Message | None = None
    """A worse answer than the last of `messages`, in preference data."""
    is_good: bool | None = None
    """Whether the last answer is, in feedback data."""


def is_loss_weight(value: object) -> bool:
    """Tell whether a turn may have this as its `loss`."""
    return value is None or (isinstance(value, int | float) and 0 <= value < math.inf)


def as_conversation(
    messages: Iterable[Message | Mapping[str, Any]], system: str | None = None, tools: str | None = None
) -> Conversation:
    """Build a Conversation from Message objects or role and content mappings; a leading system turn is taken out."""
    turns = [message if isinstance(message, Message) else _as_message(message) for message in messages]
    if turns and turns[0].role is Role.SYSTEM:
        system = system or turns[0].content
        turns = turns[1:]
    return Conversation(tuple(turns), system or "", tools or "")


def _as_message(message: Mapping[str, Any]) -> Message:
    name = str(message["role"])
    return Message(ROLE_ALIASES.get(name) or Role(name), str(message["content"] or ""), message.get("loss"))
