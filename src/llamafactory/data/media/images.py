"""Pictures: decoded within bounds, upright, in RGB, neither too large nor too small."""

import io
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...extras.errors import UserError
from ...extras.packages import require
from .medium import Source


if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")
MAX_PIXELS = 2**26
"""Larger pictures are not decoded: a file of some kilobytes can hold billions of pixels of one colour."""


@dataclass(frozen=True)
class PixelBounds:
    """How many pixels a model gets."""

    low: int
    high: int


def read_image(source: Source, bounds: PixelBounds | None = None) -> "Image":
    """Return a picture in RGB, brought within the bounds with its shape kept; one that cannot be read is a UserError.

    Of a moving picture the first frame counts.
    """
    require("PIL", "media", "An image")
    from PIL import Image, ImageOps

    if isinstance(source, Image.Image):
        image = source
        check_size(image)
    elif isinstance(source, bytes | str | Path):
        file = io.BytesIO(source) if isinstance(source, bytes) else Path(source)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is lower
                image = Image.open(file, formats=FORMATS)
            check_size(image)  # only the head was read so far
            image.load()
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"The image cannot be read as one of {', '.join(FORMATS)}: {describe(error)}.") from None
    else:
        raise UserError(f"An image is a file, its bytes or a PIL image, not {type(source).__name__}.")
    image = ImageOps.exif_transpose(image).convert("RGB")
    return fit(image, bounds) if bounds else image


def check_size(image: "Image") -> None:
    """Refuse a picture that would take too much memory."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserError(f"The image has {width} x {height} pixels; at most {MAX_PIXELS} are decoded.")


def fit(image: "Image", bounds: PixelBounds) -> "Image":
    """Shrink or enlarge a picture to the bounds."""
    width, height = image.size
    num_pixels = width * height
    target = min(max(num_pixels, bounds.low), bounds.high)
    if target == num_pixels:
        return image
    factor = math.sqrt(target / num_pixels)
    grow = math.floor if target < num_pixels else math.ceil
    return image.resize((max(grow(width * factor), 1), max(grow(height * factor), 1)))


def describe(error: Exception) -> str:
    """Say in a few words what a decoder complains about, without the addresses of objects that it may name."""
    return "unknown format" if "cannot identify" in str(error) else (str(error).splitlines() or [""])[0][:120]
