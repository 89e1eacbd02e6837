"""What a quantizer of an export is asked for."""

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class QuantizeRequest:
    """One folder to be quantized."""

    source: Path
    """The plain model, checked."""
    target: Path
    """An empty folder that receives config and weights."""
    bits: int
    dtype: torch.dtype
    """The format of the plain weights, which the others keep."""
    shard_size: str
    rows: list[list[int]]
    """Calibration rows; none for a quantizer that needs no texts."""
