"""A picture, a sound or a film in a conversation, not decoded yet."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias


if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from PIL.Image import Image

MediaKind = Literal["image", "video", "audio"]
MEDIA_KINDS: tuple[MediaKind, ...] = ("image", "video", "audio")

Source: TypeAlias = "bytes | str | Path | Image | np.ndarray | Sequence[Image]"
"""A file's content, a file (a str is a path, never an address), or what was decoded already: a picture, samples at the
model's rate, or the frames of a film."""


@dataclass(frozen=True, eq=False, slots=True)
class Medium:
    """One of them; it is decoded where its pixels or samples are needed."""

    kind: MediaKind
    source: Source
