"""How turns look in the chat box: thoughts folded, calls and results as code, and nothing a model wrote is HTML."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from ...data.conversation import Role
from .dialogue import Dialogue, Turn
from .escaping import fenced, plain_line, safe_markdown


ShownMessage: TypeAlias = dict[str, Any]
"""A message as gr.Chatbot takes it."""
Labels: TypeAlias = Mapping[str, str]
"""thinking, thought, call, result, stopped, cut, failed: the words of the page's language."""


def show_dialogue(dialogue: Dialogue, labels: Labels, *, escape: bool, is_writing: bool = False) -> list[ShownMessage]:
    """Return the messages of a chat box; is_writing: the last answer is not over."""
    last = len(dialogue.turns) - 1
    return [
        message
        for place, turn in enumerate(dialogue.turns)
        for message in show_turn(turn, labels, escape=escape, is_writing=is_writing and place == last)
    ]


def show_turn(turn: Turn, labels: Labels, *, escape: bool, is_writing: bool = False) -> Iterator[ShownMessage]:
    """Yield the messages that one turn is shown as, at least one."""
    if turn.parts is None:
        yield from _show_spoken(turn, labels)
        return
    if turn.parts.thought:
        is_open = is_writing and not turn.parts.text and not turn.parts.calls
        yield _assistant(
            safe_markdown(turn.parts.thought) if escape else turn.parts.thought,
            title=labels["thinking" if is_open else "thought"],
            status="pending" if is_open else "done",
        )
    for call in turn.parts.calls:
        yield _assistant(fenced(call.arguments, "json"), title=plain_line(f"{labels['call']}: {call.name}"))
    text = safe_markdown(turn.parts.text) if escape else turn.parts.text
    notes = [f"*{labels[turn.note]}*" if turn.note else "", plain_line(turn.error, 2000)]
    text = "\n\n".join(piece for piece in (text, *notes) if piece)
    if text or not (turn.parts.thought or turn.parts.calls):
        yield _assistant(text or "...")


def turn_of(dialogue: Dialogue, shown_index: int, labels: Labels) -> int:
    """Return the place of the turn that a shown message belongs to; -1 when there is none."""
    first = 0
    for place, turn in enumerate(dialogue.turns):
        first += sum(1 for _ in show_turn(turn, labels, escape=True))
        if 0 <= shown_index < first:
            return place
    return -1


def _show_spoken(turn: Turn, labels: Labels) -> Iterator[ShownMessage]:
    for kind in (turn.media.images, turn.media.videos, turn.media.audios):
        for path in kind:
            yield {"role": "user", "content": {"path": path}}
    if turn.role is Role.OBSERVATION:
        yield {"role": "user", "content": f"*{labels['result']}*\n\n{fenced(turn.text)}"}
    elif turn.text or not turn.media:
        yield {"role": "user", "content": safe_markdown(turn.text) or " "}


def _assistant(content: str, **metadata: str) -> ShownMessage:
    message: ShownMessage = {"role": "assistant", "content": content}
    return message | {"metadata": metadata} if metadata else message
