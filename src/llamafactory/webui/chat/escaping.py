"""Markdown of a stranger, made safe: nothing in it is HTML, nothing is fetched, and code keeps its characters.

The page sanitises what it shows as well; here it is made sure that tags are seen as text rather than taken away, and
that an answer cannot make the browser load a picture from somewhere.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple


OPENING = re.compile(r"(`{3,})[^`]*$")
FENCE_LIKE = re.compile(r"[\s>*+\-\d.)]*(`{3,}|~{3,})")
CODE = re.compile(r"(?<!`)(`+)(?!`)([^\n]+?)(?<!`)\1(?!`)")
TAG_START = re.compile(r"<(?=[A-Za-z/!?])")
WORD_JOINER = "\u2060"  # has no width, and keeps < and the letter behind it from being a tag


class Line(NamedTuple):
    """A line of Markdown."""

    text: str
    is_code: bool
    """It stands in a fenced block for certain; where that is not certain it is treated as prose."""


def safe_markdown(text: str) -> str:
    """Return Markdown in which nothing is HTML and no picture is fetched."""
    return "\n".join(line.text if line.is_code else _escaped(line.text) for line in _lines(text))


def unescaped(text: str) -> str:
    """Return what was typed, given its safe form after somebody has edited that."""
    typed = text.replace(WORD_JOINER, "").replace("!\\[", "![")
    return typed.replace("&lt;", "<").replace("&amp;", "&")


def plain_line(text: str, limit: int = 200) -> str:
    """Return one short line in which neither a browser nor Markdown finds anything to read."""
    short = " ".join(text.split())
    short = short if len(short) <= limit else f"{short[:limit]}..."
    return re.sub(r"([\\`*_\[\]#|~!$])", r"\\\1", _entities(short))


def fenced(text: str, language: str = "") -> str:
    """Return text as a block of code, whatever is in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(longest + 1, 3)
    return f"{fence}{language}\n{text}\n{fence}"


def _lines(text: str) -> Iterator[Line]:
    """Tell code from prose; a fence in a list, a quotation or of tildes makes all that follows uncertain."""
    fence = ""
    is_certain = True
    for line in text.split("\n"):
        if fence:
            is_last = line.lstrip().startswith(fence)
            if is_last:
                is_certain = is_certain and re.fullmatch(r" {0,3}`+[ \t]*", line) is not None
                fence = ""
            yield Line(line, not is_last or is_certain)
            continue
        opening = OPENING.match(line) if is_certain else None
        if opening:
            fence = opening[1]
        elif FENCE_LIKE.match(line):
            is_certain = False
        yield Line(line, False)


def _escaped(text: str) -> str:
    """Escape outside of code spans; within them entities would be seen, so there a tag is broken invisibly."""
    pieces: list[str] = []
    done = 0
    for match in CODE.finditer(text):
        pieces += [_entities(text[done : match.start()]), TAG_START.sub(f"<{WORD_JOINER}", match.group())]
        done = match.end()
    return "".join([*pieces, _entities(text[done:])]).replace("![", "!\\[")


def _entities(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
