"""Where the media of a conversation stand: at marks in its texts, or in front of the last question."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ...extras.errors import UserError
from ..conversation import Message, Role
from .medium import MediaKind, Medium, Source


MARKS: Mapping[str, MediaKind] = {"<image>": "image", "<video>": "video", "<audio>": "audio"}
"""What stands for a medium in a text."""
MARK = re.compile("|".join(MARKS))


def place_media(messages: Sequence[Message], media: Mapping[MediaKind, Sequence[Source]]) -> list[Message]:
    """Put media at the marks of the texts, in order; those of a kind without marks stand before the last question."""
    waiting: dict[MediaKind, list[Medium]] = {
        kind: [Medium(kind, source) for source in sources] for kind, sources in media.items() if sources
    }
    text = "".join(message.content for message in messages)
    counts = {kind: text.count(mark) for mark, kind in MARKS.items()}
    for kind, found in waiting.items():
        if counts[kind] not in (0, len(found)):
            raise UserError(
                f"There are {len(found)} media of the kind {kind}, but {counts[kind]} marks <{kind}> in the texts."
            )
    lead = [medium for kind, found in waiting.items() if not counts[kind] for medium in found]
    marked: dict[MediaKind, Iterator[Medium]] = {kind: iter(found) for kind, found in waiting.items() if counts[kind]}
    placed = [fill_marks(message, marked) for message in messages]
    if lead:
        last = max((i for i, message in enumerate(placed) if message.role is Role.USER), default=None)
        if last is None:
            raise UserError("There is no message of the user that the media could belong to.")
        message = placed[last]
        placed[last] = replace(message, parts=(*lead, *(message.parts or (message.content,))))
    return placed


def fill_marks(message: Message, media: Mapping[MediaKind, Iterator[Medium]]) -> Message:
    """Cut a text at its marks and put the next media there; marks of kinds without media are text."""
    parts: list[str | Medium] = []
    done = 0
    for match in MARK.finditer(message.content):
        source = media.get(MARKS[match[0]])
        if source is not None:
            parts += [message.content[done : match.start()], next(source)]
            done = match.end()
    if not parts:
        return message
    parts.append(message.content[done:])
    kept = tuple(part for part in parts if part != "")
    return replace(message, content="".join(part for part in kept if isinstance(part, str)), parts=kept)
