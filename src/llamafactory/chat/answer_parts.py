"""An answer taken apart while it arrives: thought, text and tool calls.

The same code reads whole answers, so a stream and a plain answer always agree. Text that may turn out to be a call is
held back until that is known; what is not well formed is text.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..data.conversation import Message, Role
from ..data.converter import write_calls
from ..data.tools import FunctionCall, Tool
from .answer_syntax import CALL_KEYS, JSON_STARTS, AnswerSyntax, Marks


class Part(NamedTuple):
    """A piece of one kind; a call comes as a whole."""

    kind: Literal["thought", "text", "call"]
    text: str = ""
    call: FunctionCall | None = None


@dataclass(frozen=True)
class AnswerParts:
    """A whole answer."""

    text: str
    thought: str
    calls: tuple[FunctionCall, ...]


class AnswerReader:
    """Takes one answer apart. Calls are looked for only where there are tools."""

    def __init__(self, syntax: AnswerSyntax, tools: Sequence[Tool] = (), opened: Marks | None = None) -> None:
        self.syntax = syntax
        self.tools = tools if syntax.tool_format else ()
        self._thought_end = opened[1].strip("\n") if opened else ""
        self._state: Literal["start", "thought", "text"] = "thought" if opened else "start"
        if not opened and not syntax.thought_marks:
            self._state = "text"
        self._pending = ""
        self._gap = ""  # white space that is given out only if more text of the same kind follows
        self._is_fresh = True  # nothing of the current kind was given out yet
        self._is_after_call = False
        self._joint = ""  # what separates text behind a call from the text before it
        controls = syntax.control_texts if syntax.needs_control_tokens else ()
        self._control = re.compile("|".join(map(re.escape, controls))) if controls else None

    def add(self, text: str) -> list[Part]:
        """Take more text; return what is known by now."""
        self._pending += text
        return list(self._step(is_last=False))

    def finish(self) -> list[Part]:
        """Return the rest, at the end of the answer."""
        return list(self._step(is_last=True))

    def _step(self, *, is_last: bool) -> Iterable[Part]:
        if self._state == "start":
            self._read_start(is_last)
        if self._state == "thought":
            yield from self._read_thought(is_last)
        if self._state == "text":
            yield from self._read_text(is_last)

    def _read_start(self, is_last: bool) -> None:
        """Find out whether the answer begins with a thought."""
        text = self._pending.lstrip()
        for start, end in self.syntax.thought_marks:
            if text.startswith(start):
                self._thought_end, self._state, self._pending = end.strip("\n"), "thought", text[len(start) :]
                return
        if is_last or not any(start.startswith(text) for start, _ in self.syntax.thought_marks):
            self._state = "text"

    def _read_thought(self, is_last: bool) -> Iterable[Part]:
        end = self._thought_end
        place = self._pending.find(end)
        if place >= 0:
            yield from self._give("thought", self._pending[:place])
            self._state, self._gap, self._is_fresh = "text", "", True
            self._pending = self._pending[place + len(end) :]
            return
        held = 0 if is_last else overlap(self._pending, end)
        taken, self._pending = self._pending[: len(self._pending) - held], self._pending[len(self._pending) - held :]
        yield from self._give("thought", taken)

    def _read_text(self, is_last: bool) -> Iterable[Part]:
        if not self.tools:
            taken, self._pending = self._pending, ""
            yield from self._give("text", taken, is_exact=True)
            return
        while True:
            start, is_sure = self._find_start(is_last)
            taken, self._pending = self._pending[:start], self._pending[start:]
            yield from self._give("text", taken)
            parts = list(self._take_calls(is_last)) if is_sure else []
            yield from parts
            if not parts:
                break
        if is_last:
            taken, self._pending = self._pending, ""
            yield from self._give("text", taken)
            if self._gap and not self._is_after_call:
                yield Part("text", self._gap)

    def _find_start(self, is_last: bool) -> tuple[int, bool]:
        """Return where a call may begin in the pending text, and whether what begins there is more than a guess."""
        text = self._pending
        if self.syntax.is_json:
            return find_json(text, is_line_start=self._is_fresh or "\n" in self._gap)
        if not self.syntax.triggers:
            return 0, is_last
        places = [place for place in (text.find(trigger) for trigger in self.syntax.triggers) if place >= 0]
        if places:
            return min(places), True
        held = 0 if is_last else max(overlap(text, trigger) for trigger in self.syntax.triggers)
        return len(text) - held, False

    def _take_calls(self, is_last: bool) -> Iterable[Part]:
        """Cut the calls that are complete out of the pending text."""
        tool_format = self.syntax.tool_format
        if tool_format is None or not (self.syntax.is_closed or is_last):
            return
        done = 0
        text = self._pending
        try:
            for block in tool_format.find_calls(text, self.tools):
                yield from self._give("text", text[done : block.start])
                yield from (Part("call", call=call) for call in block.calls)
                done = block.end
                self._joint = self._joint if self._is_fresh else "\n"
                self._gap, self._is_after_call, self._is_fresh = "", True, True
        except (ValueError, RecursionError):
            pass  # not complete yet, or not a call: the end of the answer decides
        self._pending = text[done:]

    def _give(self, kind: Literal["thought", "text"], text: str, *, is_exact: bool = False) -> Iterable[Part]:
        """Give text out; white space at its end waits, as a call, or the end of a thought, makes it meaningless."""
        if self._control is not None:
            text = self._control.sub("", text)
        text = self._gap + text
        if self._is_fresh and (kind == "thought" or self._thought_end or self._is_after_call):
            text = text.lstrip("\n" if not self._is_after_call else None)
        body = text if is_exact else text.rstrip()
        self._gap = text[len(body) :]
        if body:
            lead = self._joint if self._is_fresh else ""
            self._is_fresh = False
            yield Part(kind, lead + body)


def read_answer(
    syntax: AnswerSyntax, text: str, tools: Sequence[Tool] = (), opened: Marks | None = None
) -> AnswerParts:
    """Take a whole answer apart."""
    reader = AnswerReader(syntax, tools, opened)
    parts = [*reader.add(text), *reader.finish()]
    return join_parts(parts)


def join_parts(parts: Iterable[Part]) -> AnswerParts:
    """Put pieces together by kind."""
    kept = list(parts)
    return AnswerParts(
        "".join(part.text for part in kept if part.kind == "text"),
        "".join(part.text for part in kept if part.kind == "thought"),
        tuple(part.call for part in kept if part.call is not None),
    )


def calling_message(text: str, calls: Iterable[FunctionCall]) -> Message:
    """Return the turn of an assistant that calls tools, with text in front, as training data has it."""
    return Message(Role.FUNCTION, write_calls([{"name": call.name, "arguments": call.values} for call in calls], text))


def find_json(text: str, *, is_line_start: bool) -> tuple[int, bool]:
    """Find the first place at the start of a line where JSON with the keys of a call begins, or may begin."""
    place = 0
    while place < len(text):
        line_end = text.find("\n", place)
        if is_line_start:
            head = text[place:].lstrip(" \t")
            if head[:1] in tuple(JSON_STARTS) or not head:
                key = head.lstrip(JSON_STARTS + " \t\r\n")
                if not key or any(key.startswith(name) or name.startswith(key) for name in CALL_KEYS):
                    return place, True
        if line_end < 0:
            break
        place, is_line_start = line_end + 1, True
    return len(text), False


def overlap(text: str, mark: str) -> int:
    """Return the length of the longest ending of text that a mark begins with."""
    return next((size for size in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-size:])), 0)
