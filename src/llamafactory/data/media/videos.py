"""Films: some frames of them, evenly spread, each within bounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...extras.errors import UserError
from .containers import open_container
from .images import MAX_PIXELS, PixelBounds, read_image
from .medium import Source


if TYPE_CHECKING:
    from PIL.Image import Image

MAX_SECONDS = 30 * 60
"""Longer films are refused."""


@dataclass(frozen=True)
class FrameBounds:
    """What a model gets of a film."""

    fps: float
    most_frames: int
    pixels: PixelBounds


class Film(NamedTuple):
    """Frames with their times."""

    frames: "list[Image]"
    seconds: list[float]
    """When each frame is shown."""


def read_video(source: Source, bounds: FrameBounds) -> Film:
    """Return the frames of a film; one that cannot be read is a UserError."""
    if isinstance(source, Sequence) and not isinstance(source, bytes | str):
        frames = [read_image(frame, bounds.pixels) for frame in source[: bounds.most_frames]]
        return Film(frames, [place / bounds.fps for place in range(len(frames))])
    if not isinstance(source, bytes | str | Path):
        raise UserError(f"A video is a file, its bytes or a list of images, not {type(source).__name__}.")
    with open_container(source, "video") as (_, container):
        if not container.streams.video:
            raise UserError("The video has no pictures.")
        stream = container.streams.video[0]
        wanted = choose_frames(stream, bounds)
        film = Film([], [])
        for number, frame in enumerate(container.decode(stream)):
            if number > max(wanted):
                break
            if number in wanted:
                film.frames.append(read_image(frame.to_image(), bounds.pixels))
                film.seconds.append(float(frame.time or 0))
    if not film.frames:
        raise UserError("The video has no pictures.")
    return film


def choose_frames(stream: Any, bounds: FrameBounds) -> set[int]:
    """Return the numbers of the frames that are kept."""
    if stream.width * stream.height > MAX_PIXELS:
        raise UserError(f"The video has frames of {stream.width} x {stream.height} pixels; that is too many.")
    rate = float(stream.average_rate or stream.guessed_rate or 0) or bounds.fps
    in_container = stream.container.duration / 1e6 if stream.container.duration else 0.0
    seconds = float(stream.duration * stream.time_base) if stream.duration else in_container
    if seconds > MAX_SECONDS:
        raise UserError(f"The video is longer than {MAX_SECONDS} seconds.")
    num_frames = stream.frames or max(int(seconds * rate), 1)
    num_kept = max(min(num_frames, bounds.most_frames, int(seconds * bounds.fps)), 1)
    step = (num_frames - 1) / max(num_kept - 1, 1)
    return {round(place * step) for place in range(num_kept)}
