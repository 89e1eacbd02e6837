"""Readers for values that are almost JSON: Python's literals and Gemma's.

Every method moves `place`; ValueError means that the text is not what it should be.
"""

import re
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from .calls import load, skip_blank


T = TypeVar("T")

WORD = re.compile(r"[^\s,:=(){}\[\]]+")
CONSTANTS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": ""}


class LiteralReader:
    """Reads values from text; a subclass says what strings and keys look like."""

    string_pattern: ClassVar[re.Pattern[str]]

    def __init__(self, text: str, place: int) -> None:
        self.text = text
        self.place = place

    def value(self) -> Any:
        """Read one value of any kind."""
        char = self.peek()
        if char == "{":
            return dict(self.items("{", "}", self.pair))
        if char == "[":
            return self.items("[", "]", self.value)
        return self.string() if self.at_string() else self.constant()

    def items(self, opening: str, closing: str, read: Callable[[], T]) -> list[T]:
        """Read a list with commas between its marks."""
        self.take(opening)
        found: list[T] = []
        while self.peek() != closing:
            if found:
                self.take(",")
            found.append(read())
        self.take(closing)
        return found

    def pair(self) -> tuple[str, Any]:
        """Read a key and its value."""
        key = self.string() if self.at_string() else self.word()
        self.take(":")
        return key, self.value()

    def constant(self) -> Any:
        """Read a number, true, false or null."""
        word = self.word()
        value = CONSTANTS[word] if word in CONSTANTS else load(word)
        if isinstance(value, str):
            raise ValueError("a string in the wrong quotes")
        return value

    def at_string(self) -> bool:
        """Tell whether a string begins here."""
        self.place = skip_blank(self.text, self.place)
        return self.string_pattern.match(self.text, self.place) is not None

    def string(self) -> str:
        """Read a string."""
        match = self.match(self.string_pattern)
        return self.unescape(match[1] if match[1] is not None else match[2])

    def unescape(self, text: str) -> str:
        """Return what the inside of a string stands for."""
        return text

    def word(self) -> str:
        """Read what stands before the next mark."""
        return self.match(WORD).group()

    def match(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """Read what a pattern finds here."""
        self.place = skip_blank(self.text, self.place)
        match = pattern.match(self.text, self.place)
        if match is None:
            raise ValueError("not a value")
        self.place = match.end()
        return match

    def peek(self) -> str:
        """Return the next character; "" at the end."""
        self.place = skip_blank(self.text, self.place)
        return self.text[self.place : self.place + 1]

    def take(self, mark: str) -> None:
        """Read a mark that must stand here."""
        self.place = skip_blank(self.text, self.place)
        if not self.text.startswith(mark, self.place):
            raise ValueError(f"{mark} is missing")
        self.place += len(mark)


class PythonReader(LiteralReader):
    """Strings in single or double quotes, with escapes."""

    string_pattern = re.compile(r'"((?:[^"\\]|\\.)*)"|\'((?:[^\'\\]|\\.)*)\'', re.DOTALL)

    def unescape(self, text: str) -> str:
        """Resolve escapes; one that is not known stands for itself."""
        if "\\" not in text:
            return text
        plain = ESCAPE.sub(read_escape, text)
        return plain.encode("utf-16", "surrogatepass").decode("utf-16")  # joins pairs, refuses halves


class GemmaReader(LiteralReader):
    """Strings between `<|"|>` marks, as they are."""

    string_pattern = re.compile(r'<\|"\|>(.*?)<\|"\|>()', re.DOTALL)


def read_escape(match: re.Match[str]) -> str:
    """Return the character that an escape stands for."""
    code = match[1] or match[2]
    if code:
        return chr(int(code, 16))
    char = match[3]
    return char if char in "\\\"'" else ESCAPED.get(char, f"\\{char}")
