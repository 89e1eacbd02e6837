"""A dialogue in the browser: what was said, what the model reads of it, and the answers of one or two models.

Nothing is written to: every step returns a new dialogue, so that a half-written answer never spoils an earlier one.
"""

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from ...chat.answer_parts import AnswerParts
from ...chat.answer_syntax import Marks
from ...chat.terminal import parts_as_message
from ...data.conversation import Message, Role
from ...data.media.medium import MediaKind, Medium


Note: TypeAlias = Literal["", "stopped", "cut"]


@dataclass(frozen=True)
class Media:
    """Files that a message of the user brings along."""

    images: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()
    audios: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.images or self.videos or self.audios)

    def as_parts(self) -> tuple[Medium, ...]:
        """Return them as parts of a message, in front of its text."""
        kinds: tuple[tuple[MediaKind, tuple[str, ...]], ...] = (
            ("image", self.images),
            ("video", self.videos),
            ("audio", self.audios),
        )
        return tuple(Medium(kind, path) for kind, paths in kinds for path in paths)


@dataclass(frozen=True)
class Turn:
    """One message of the user, a result of a tool, or an answer."""

    role: Role
    text: str = ""
    """What the user typed; empty for an answer, which has parts."""
    parts: AnswerParts | None = None
    note: Note = ""
    error: str = ""
    """Why there is no (whole) answer; such a turn is shown and never read by a model."""
    media: Media = Media()

    @property
    def is_answer(self) -> bool:
        """Whether a model wrote it."""
        return self.parts is not None

    def as_message(self, marks: tuple[Marks, ...]) -> Message:
        """Return what a model reads."""
        if self.parts is not None:
            return parts_as_message(self.parts, marks)
        return (
            Message(self.role, self.text, parts=(*self.media.as_parts(), self.text))
            if self.media
            else Message(self.role, self.text)
        )


@dataclass(frozen=True)
class Dialogue:
    """The turns of one model. Two models side by side have one dialogue each, with the same words of the user."""

    turns: tuple[Turn, ...] = ()

    def with_turn(self, turn: Turn) -> "Dialogue":
        """Return the dialogue with one turn more; a failed answer at the end gives way."""
        kept = self.turns[:-1] if self.turns and self.turns[-1].error else self.turns
        return Dialogue((*kept, turn))

    def with_answer(self, turn: Turn) -> "Dialogue":
        """Return the dialogue with the answer to its last message in place of an earlier, shorter one."""
        kept = self.turns[:-1] if self.turns and self.turns[-1].is_answer else self.turns
        return Dialogue((*kept, turn))

    def before_answer(self) -> "Dialogue":
        """Return the dialogue without what follows the last words of the user, to be answered once more."""
        spoken = [place for place, turn in enumerate(self.turns) if not turn.is_answer]
        return Dialogue(self.turns[: spoken[-1] + 1]) if spoken else Dialogue()

    def edited(self, place: int, text: str) -> "Dialogue":
        """Return the dialogue up to a turn of the user, which says something else; an answer is changed in place."""
        if not 0 <= place < len(self.turns):
            return self
        turn = self.turns[place]
        if turn.parts is None:
            return Dialogue((*self.turns[:place], replace(turn, text=text)))
        changed = replace(turn, parts=AnswerParts(text, turn.parts.thought, turn.parts.calls), note="", error="")
        return Dialogue((*self.turns[:place], changed, *self.turns[place + 1 :]))

    def messages(self, marks: tuple[Marks, ...]) -> list[Message]:
        """Return what a model reads."""
        return [turn.as_message(marks) for turn in self.turns if not turn.error]

    @property
    def expects_results(self) -> bool:
        """Whether the last answer called tools, whose results come next."""
        last = self.turns[-1] if self.turns else None
        return last is not None and last.parts is not None and bool(last.parts.calls)
