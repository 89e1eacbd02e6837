"""Images and sounds are decoded within bounds; what is broken or too large is one sentence."""

import io
import struct
import wave
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llamafactory.data.media import images, sounds
from llamafactory.data.media.containers import find_demuxer
from llamafactory.data.media.images import PixelBounds, read_image
from llamafactory.data.media.sounds import read_audio
from llamafactory.data.media.videos import FrameBounds, read_video
from llamafactory.extras.errors import UserError


BOUNDS = FrameBounds(fps=2.0, most_frames=4, pixels=PixelBounds(16, 2**20))


def as_file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of some bytes that says it has that many pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    written = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def wav(samples: np.ndarray, rate: int = 16000, num_channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(num_channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def test_an_image_is_rgb_and_upright(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 2), (255, 0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    turned = as_file(Image.new("RGB", (4, 2)), "JPEG", exif=exif)
    (tmp_path / "x.png").write_bytes(as_file(image))

    for source in (image, as_file(image), tmp_path / "x.png", str(tmp_path / "x.png"), as_file(image, "GIF")):
        read = read_image(source)
        assert (read.mode, read.size, read.getpixel((0, 0))) == ("RGB", (4, 2), (255, 0, 0))
    assert read_image(turned).size == (2, 4)


def test_an_image_is_brought_within_the_bounds_with_its_shape() -> None:
    bounds = PixelBounds(low=1024, high=10_000)

    assert read_image(Image.new("RGB", (64, 32)), bounds).size == (64, 32)
    assert read_image(Image.new("RGB", (400, 100)), bounds).size == (200, 50)
    assert read_image(Image.new("RGB", (16, 16)), bounds).size == (32, 32)
    assert read_image(Image.new("RGB", (30_000, 1)), bounds).size[1] == 1


@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 2**31 - 1), (8193, 8193)])
def test_a_decompression_bomb_is_refused_by_its_head(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=r"pixels; at most 67108864 are decoded|cannot be read"):
        read_image(bomb(*size))


def test_what_is_no_image_is_one_sentence() -> None:
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n"
    for content in (
        b"",
        b"x",
        svg,
        eps,
        as_file(Image.new("RGB", (2, 2)))[:40],
        as_file(Image.new("L", (2, 2)), "TIFF"),
    ):
        with pytest.raises(UserError, match="The image cannot be read as one of PNG, JPEG, GIF, BMP, WEBP"):
            read_image(content)
    with pytest.raises(UserError, match="not int"):
        read_image(3)  # type: ignore[arg-type]
    assert images.MAX_PIXELS < 2**27


def test_wav_at_the_models_rate_needs_no_package() -> None:
    tone = np.sin(np.arange(1600) / 10)
    both = np.stack([tone, np.zeros_like(tone)], 1).reshape(-1)

    assert np.allclose(read_audio(wav(tone), 16000), tone, atol=1e-3)
    assert np.allclose(read_audio(wav(both, num_channels=2), 16000), tone / 2, atol=1e-3)
    assert read_audio(tone, 16000).dtype == np.float32


def test_sounds_that_cannot_be_read_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="is not a file of the kind MP4"):
        read_audio(b"#EXTM3U\nhttp://127.0.0.1/x", 16000)
    with pytest.raises(UserError, match="is not a file of the kind MP4"):
        read_audio(b"RIFF\0\0\0\0", 16000)
    monkeypatch.setattr(sounds, "MAX_SECONDS", 1)
    with pytest.raises(UserError, match="longer than 1 seconds"):
        read_audio(wav(np.zeros(32000)), 16000)


def test_the_demuxer_is_told_by_the_content_and_lists_of_addresses_have_none() -> None:
    assert find_demuxer(b"\0\0\0\x18ftypmp42") == "mov"
    assert find_demuxer(b"RIFF\0\0\0\0WAVE") == "wav"
    for content in (b"#EXTM3U\n", b"ffconcat version 1.0\n", b"<?xml version", b"RIFF\0\0\0\0WEBP", b""):
        assert find_demuxer(content) is None


def test_frames_can_be_given_as_images() -> None:
    film = read_video([Image.new("RGB", (20, 20))] * 6, BOUNDS)

    assert [len(film.frames), film.seconds] == [4, [0.0, 0.5, 1.0, 1.5]]


def test_film_and_sound_are_decoded_by_pyav() -> None:
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number * 8, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    tone = np.sin(np.arange(44100) * 2 * np.pi * 440 / 44100)

    film = read_video(buffer.getvalue(), BOUNDS)
    samples = read_audio(wav(tone, 44100), 16000)

    assert [round(float(np.asarray(frame).mean()), -1) for frame in film.frames] == [0, 80, 150, 230]
    assert film.frames[0].size == (64, 48)
    assert len(samples) == 16000
    assert np.allclose(samples[2000:-2000], np.sin(np.arange(16000) * 2 * np.pi * 440 / 16000)[2000:-2000], atol=0.01)
    for content in (b"ID3" + b"\0" * 50, b"\0\0\0\x18ftypmp42" + b"x" * 100):
        with pytest.raises(UserError, match="cannot be decoded"):
            read_video(content, BOUNDS)
