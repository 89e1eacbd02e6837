"""Sound: one channel of samples at the rate of the model.

WAV files at that rate are read by Python itself; everything else needs PyAV.
"""

import io
import wave
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ...extras.errors import UserError
from .containers import open_container, read_start
from .medium import Source


MAX_SECONDS = 30 * 60
"""Longer sounds are refused."""


def read_audio(source: Source, rate: int) -> np.ndarray:
    """Return float32 samples between -1 and 1; what cannot be read is a UserError."""
    if isinstance(source, np.ndarray):
        return source.astype(np.float32)
    if not isinstance(source, bytes | str | Path):
        raise UserError(f"A sound is a file, its bytes or an array of samples, not {type(source).__name__}.")
    if read_start(source).startswith(b"RIFF"):
        samples = read_wave(source, rate)
        if samples is not None:
            return samples
    return decode(source, rate)


def read_wave(source: bytes | str | Path, rate: int) -> np.ndarray | None:
    """Return the samples of plain PCM at the wanted rate; None where PyAV has to help."""
    file: Any = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    try:
        with wave.open(file, "rb") as sound:
            width, num_channels, num_frames = sound.getsampwidth(), sound.getnchannels(), sound.getnframes()
            if sound.getframerate() != rate or width not in (1, 2, 4):
                return None
            check_length(num_frames / rate)
            data = sound.readframes(num_frames)
    except (wave.Error, EOFError):
        return None
    if width == 1:
        samples = np.frombuffer(data, np.uint8).astype(np.float32) / 128 - 1
    else:
        whole = data[: len(data) // width * width]
        samples = np.frombuffer(whole, f"<i{width}").astype(np.float32) / 2 ** (8 * width - 1)
    return samples[: len(samples) // num_channels * num_channels].reshape(-1, num_channels).mean(1, dtype=np.float32)


def decode(source: bytes | str | Path, rate: int) -> np.ndarray:
    """Decode and resample with PyAV."""
    with open_container(source, "audio") as (av, container):
        if not container.streams.audio:
            raise UserError("The sound has no audio track.")
        resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        pieces: list[np.ndarray] = []
        num_samples = 0
        for frame in chain(container.decode(audio=0), (None,)):  # None: give out what is left
            for part in resampler.resample(frame):
                pieces.append(part.to_ndarray().reshape(-1))
                num_samples += pieces[-1].size
                check_length(num_samples / rate)
    return np.concatenate(pieces).astype(np.float32) if pieces else np.zeros(0, np.float32)


def check_length(seconds: float) -> None:
    """Refuse a sound that is too long."""
    if seconds > MAX_SECONDS:
        raise UserError(f"The sound is longer than {MAX_SECONDS} seconds.")
