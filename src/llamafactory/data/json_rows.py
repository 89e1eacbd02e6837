"""Rows of JSON files, one at a time: memory stays flat, and an error names the line."""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any, TextIO

from ..extras.errors import UserError
from .data_files import DataFile


CHUNK = 1 << 20
SPACE = " \t\r\n"


def read_json_rows(file: DataFile, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, row) of a file that holds a JSON list of objects, or one object per line, from row `start` on."""
    try:
        with file.open_text() as head:  # opened twice, because packed files cannot go back
            read = _read_list if starts_with_list(head) else _read_lines
        with file.open_text() as stream:
            for line, row in read(stream, start):
                if not isinstance(row, dict):
                    raise UserError(f"{file}, line {line}: a row must be a JSON object, not {shorten(row)}.")
                yield line, row
    except JSONLineError as error:
        raise UserError(f"{file}, line {error.line}: {error}; mend the JSON of this row.") from None
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text; save it as UTF-8.") from None


def shorten(value: object, limit: int = 60) -> str:
    """Show a value in an error message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[:limit] + "..."


def say_fault(error: json.JSONDecodeError) -> str:
    """Return what is wrong with a JSON text, and where the message of the decoder points, what stands there."""
    if not error.msg.endswith(" at"):
        return error.msg
    return f"{error.msg} {shorten(error.doc[error.pos : error.pos + 60].lstrip(chr(34)), 32)}"


class JSONLineError(ValueError):
    """Malformed JSON at a line of a file."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


class Buffer:
    """A window on a text file: what is read and not yet used."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.text = ""
        self.place = 0
        self.line = 1
        self.is_complete = False
        self.decoder = json.JSONDecoder()

    def peek(self) -> str:
        """Return the next character that is no white space; "" at the end."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in SPACE:
                self.line += self.text[self.place] == "\n"
                self.place += 1
            if self.place < len(self.text) or self.is_complete:
                return self.text[self.place : self.place + 1]
            self.fill()

    def take(self) -> None:
        """Step over one character."""
        self.place += 1

    def take_value(self) -> Any:
        """Decode the value that stands here."""
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.place)
            except json.JSONDecodeError as error:
                if self.is_complete:
                    line = self.line + self.text.count("\n", self.place, error.pos)
                    raise JSONLineError(line, say_fault(error)) from None
            else:
                if end < len(self.text) or self.is_complete:
                    self.line += self.text.count("\n", self.place, end)
                    self.place = end
                    return value
            self.fill()

    def fill(self) -> None:
        """Forget what is used and read on; the more is pending the more is read, so that retries stay few."""
        self.text = self.text[self.place :]
        self.place = 0
        more = self.stream.read(max(CHUNK, len(self.text)))
        self.text += more
        self.is_complete = not more


def starts_with_list(stream: TextIO) -> bool:
    """Tell whether a file holds a JSON list."""
    character = " "
    while character and character in SPACE:
        character = stream.read(1)
    return character == "["


def _read_list(stream: TextIO, start: int) -> Iterator[tuple[int, Any]]:
    return islice(_read_items(stream), start, None)


def _read_items(stream: TextIO) -> Iterator[tuple[int, Any]]:
    buffer = Buffer(stream)
    buffer.peek()
    buffer.take()
    if buffer.peek() == "]":
        return
    while True:
        buffer.peek()
        line = buffer.line
        yield line, buffer.take_value()
        mark = buffer.peek()
        buffer.take()
        if mark == "]":
            return
        if mark != ",":
            raise JSONLineError(buffer.line, "a comma or the closing ] is missing" if mark else "the file is cut off")


def _read_lines(stream: TextIO, start: int) -> Iterator[tuple[int, Any]]:
    filled = ((line, text) for line, text in enumerate(stream, 1) if text.strip())
    for line, text in islice(filled, start, None):
        try:
            yield line, json.loads(text)
        except json.JSONDecodeError as error:
            raise JSONLineError(line, say_fault(error)) from None
