"""Answers as they arrive: one stream, or two side by side, that a button can stop at once."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ...chat.answer_parts import AnswerReader, Part, join_parts
from ...chat.answer_syntax import find_opened
from ...chat.requests import ChatRequest
from ...data.conversation import Role, RowDropped
from ...data.tools import parse_tools
from ...extras.errors import UserError
from .dialogue import Dialogue, Note, Turn
from .loaded import Voice


SHOW_SECONDS = 0.05
"""A page that is drawn more often than this looks no smoother and costs the model time."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the controls beside the chat say."""

    system: str = ""
    tools: str = ""
    thinking: bool | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Generation options: max_new_tokens, top_p, temperature, seed, skip_special_tokens."""


class StopSignals:
    """The stop buttons of all browsers: each stops what its own browser asked for, and nothing else."""

    def __init__(self) -> None:
        self._signals: dict[str, set[asyncio.Event]] = {}

    def begin(self, session: str) -> asyncio.Event:
        """Return the signal of one answer."""
        signal = asyncio.Event()
        self._signals.setdefault(session, set()).add(signal)
        return signal

    def end(self, session: str, signal: asyncio.Event) -> None:
        """Forget the signal of an answer that is over."""
        signals = self._signals.get(session, set())
        signals.discard(signal)
        if not signals:
            self._signals.pop(session, None)

    def stop(self, session: str) -> int:
        """Stop all answers of a browser; return how many there were. Runs on the loop that the answers run on."""
        signals = self._signals.get(session, set())
        for signal in signals:
            signal.set()
        return len(signals)

    def is_answering(self, session: str) -> bool:
        """Whether a browser waits for an answer."""
        return session in self._signals


class _Event(NamedTuple):
    """News of one of several answers."""

    place: int
    parts: Sequence[Part] = ()
    error: BaseException | None = None
    is_last: bool = False
    note: Note = ""


def check_tools(text: str) -> str:
    """Return what is wrong with a list of tools, in one sentence; "" when nothing is."""
    try:
        parse_tools(text)
    except RowDropped as problem:
        return f"This is not a JSON list of objects with a name: {problem}."
    return ""


async def answer(
    lanes: Sequence[tuple[Voice, Dialogue]], settings: Settings, stop: asyncio.Event
) -> AsyncGenerator[list[Dialogue], None]:
    """Give the dialogues with more and more of their answers; leaving early, and the signal, stop the models."""
    progress = [_Progress(dialogue) for _, dialogue in lanes]
    events: asyncio.Queue[_Event] = asyncio.Queue()
    tasks: list[asyncio.Task[Any]] = [
        asyncio.create_task(_pump(place, voice, dialogue, settings, events))
        for place, (voice, dialogue) in enumerate(lanes)
    ]
    stopping: asyncio.Task[Any] = asyncio.create_task(stop.wait())
    try:
        while not all(one.is_over for one in progress) and not stop.is_set():
            for event in await _next_events(events, stopping):
                progress[event.place].take(event)
            yield [one.dialogue() for one in progress]
    finally:
        for task in (*tasks, stopping):
            task.cancel()
        await asyncio.gather(*tasks, stopping, return_exceptions=True)
    if stop.is_set():
        yield [one.stopped() for one in progress]


class _Progress:
    """What has arrived of one answer."""

    def __init__(self, dialogue: Dialogue) -> None:
        self.asked = dialogue
        self.parts: list[Part] = []
        self.note: Note = ""
        self.error = ""
        self.is_over = False

    def take(self, event: _Event) -> None:
        self.parts += event.parts
        if event.is_last:
            self.is_over, self.note = True, event.note
        if isinstance(event.error, UserError):
            self.error = str(event.error)
        elif event.error is not None:
            raise event.error

    def dialogue(self) -> Dialogue:
        return self.asked.with_answer(Turn(Role.ASSISTANT, "", join_parts(self.parts), self.note, self.error))

    def stopped(self) -> Dialogue:
        """Return what is left of a stopped answer; a call that nobody will answer is not."""
        if self.is_over:
            return self.dialogue()
        parts = join_parts(part for part in self.parts if part.call is None)
        return self.asked.with_answer(Turn(Role.ASSISTANT, "", parts, "stopped"))


async def _next_events(events: "asyncio.Queue[_Event]", stopping: "asyncio.Task[Any]") -> list[_Event]:
    """Wait for news, or for the stop signal; return all there are."""
    getter = asyncio.create_task(events.get())
    await asyncio.wait({getter, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not getter.done():
        getter.cancel()
        return []
    found = [getter.result()]
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(stopping), SHOW_SECONDS)
    while not events.empty():
        found.append(events.get_nowait())
    return found


async def _pump(
    place: int, voice: Voice, dialogue: Dialogue, settings: Settings, events: "asyncio.Queue[_Event]"
) -> None:
    """Put the pieces of one answer into the queue, and at the end how it ended."""
    note: Note = ""
    try:
        request = _request(voice, dialogue, settings)
        opened = find_opened(voice.model.engine, voice.syntax, request)
        reader = AnswerReader(voice.syntax, parse_tools(settings.tools) if settings.tools.strip() else (), opened)
        async with aclosing(voice.model.engine.stream_chat(request)) as stream:
            async for chunk in stream:
                note = "cut" if chunk.finish_reason == "length" else note
                events.put_nowait(_Event(place, reader.add(chunk.text)))
    except RowDropped as error:
        events.put_nowait(
            _Event(place, error=UserError(f"This conversation cannot be written: {error}."), is_last=True)
        )
    except UserError as error:
        events.put_nowait(_Event(place, error=error, is_last=True))
    except Exception as error:  # a fault of ours: the page must not wait for ever, and the log gets it whole
        events.put_nowait(_Event(place, error=error, is_last=True))
        raise
    else:
        events.put_nowait(_Event(place, reader.finish(), is_last=True, note=note))


def _request(voice: Voice, dialogue: Dialogue, settings: Settings) -> ChatRequest:
    options = dict(settings.options)
    if voice.syntax.needs_control_tokens:
        options["skip_special_tokens"] = False
    return voice.model.chat_request(
        dialogue.messages(voice.syntax.thought_marks),
        settings.system or None,
        settings.tools.strip() or None,
        adapter=voice.adapter,
        thinking=settings.thinking,
        **options,
    )
