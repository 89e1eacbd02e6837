"""Files of sound and film, opened with PyAV.

Which demuxer reads a file is decided here by its first bytes, and what it refers to is never opened: some formats
(playlists, lists of files) are nothing but names of other files and addresses.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...extras.errors import UserError
from ...extras.packages import require


START = 12  # bytes by which a format is told
SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (8, b"WAVE", "wav"),
    (8, b"AVI ", "avi"),
    (4, b"ftyp", "mov"),
    (0, b"OggS", "ogg"),
    (0, b"fLaC", "flac"),
    (0, b"ID3", "mp3"),
    (0, b"\xff\xfb", "mp3"),
    (0, b"\xff\xf3", "mp3"),
    (0, b"\xff\xf2", "mp3"),
    (0, b"\x1a\x45\xdf\xa3", "matroska"),
)
"""(place, bytes, FFmpeg's demuxer)."""
KNOWN = "MP4, MOV, MKV, WebM, AVI, MP3, WAV, FLAC or Ogg"


@contextmanager
def open_container(source: bytes | str | Path, what: str) -> Iterator[tuple[Any, Any]]:
    """Open a file and give (PyAV, the container); what FFmpeg cannot read is a UserError, also while reading."""
    demuxer = find_demuxer(read_start(source))
    if demuxer is None:
        raise UserError(f"The {what} is not a file of the kind {KNOWN}.")
    av: Any = require("av", "media", f"{what.capitalize()} of this kind")
    file = io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb")  # noqa: SIM115  (closed below)
    try:
        with file, av.open(file, format=demuxer, io_open=refuse_open) as container:
            yield av, container
    except av.FFmpegError as error:
        raise UserError(f"The {what} cannot be decoded: {error.strerror}.") from None


def refuse_open(url: str, flags: int, options: Any) -> Any:
    """Open nothing that a file refers to."""
    raise PermissionError("A media file refers to another one, which is not opened.")


def find_demuxer(start: bytes) -> str | None:
    """Tell the format of a file by its first bytes."""
    return next((name for place, mark, name in SIGNATURES if start[place:].startswith(mark)), None)


def read_start(source: bytes | str | Path) -> bytes:
    """Return the first bytes of a file."""
    if isinstance(source, bytes):
        return source[:START]
    try:
        with Path(source).open("rb") as file:
            return file.read(START)
    except OSError as error:
        raise UserError(f"{str(source)!r} cannot be read: {error.strerror}.") from None
