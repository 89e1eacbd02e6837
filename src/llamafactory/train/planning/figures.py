"""What a plan says: one JSON object of a documented shape (docs/plan.md), which the web page reads too."""

from dataclasses import asdict, dataclass, field
from typing import Any


VERSION = 1
"""Grows when a field goes or changes its meaning; new fields may come at any time."""


@dataclass(frozen=True, kw_only=True)
class ModelFigures:
    """The model, without its weights."""

    name: str
    parameters: int
    trained: int
    trained_share: float
    method: str
    quantization: str | None
    """Such as `bnb 4`."""
    compute_dtype: str
    trained_dtype: str
    optimizer: str


@dataclass(frozen=True, kw_only=True)
class DataFigures:
    """What is learned from; nulls where rows are not known (no tokenizer, a stream)."""

    is_assumed: bool
    """The rows could not be looked at: full ones of cutoff_len are assumed."""
    num_rows: int | None
    tokens_per_epoch: int | None
    largest_batch_tokens: int
    """Padding included; what memory has to hold."""
    mean_batch_tokens: float
    """Places in an average batch; what time depends on."""
    batch_size: int
    gradient_accumulation_steps: int
    num_devices: int
    steps_per_epoch: int | None
    num_epochs: float | None
    num_steps: int | None
    writes_answers: bool = False
    """The model writes the answers that it learns from, so a step is not measured by the tokens of its rows."""


@dataclass(frozen=True, kw_only=True)
class MemoryFigures:
    """Bytes on one device. The parts do not all exist at once, so they add up to more than the peak."""

    parts: dict[str, int]
    """weights, gradients, optimizer, activations, logits, copies, work, update, helpers, generation, process, heap,
    mapped."""
    peak: int
    phase: str
    """Where the peak is: `backward`, `update` or `generation`."""
    free: int
    """What this process may still take, limits of a container included."""
    usable: int
    """The share of it that a run should count on."""
    checkpointing: str
    """`off`, `on` or a number of layers."""
    checkpointing_reason: str
    """`asked`, or `fits` / `needed` where memory decides."""


@dataclass(frozen=True, kw_only=True)
class DeviceFigures:
    """Where it runs."""

    kind: str
    name: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """One change, with the estimate made again for it."""

    changes: dict[str, Any]
    """Keys of the configuration and their values."""
    why: str
    peak: int
    saved: int
    fits: bool


@dataclass(frozen=True, kw_only=True)
class ProbeFigures:
    """What a real step took; nothing of it was kept."""

    seconds_per_step: float
    tokens_per_second: float
    total_seconds: float | None
    """Of training alone, all steps; null where nobody knows how many there are."""
    peak: int | None
    """Measured, of a batch of the usual size (which may be smaller than the largest)."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything."""

    stage: str
    device: DeviceFigures
    model: ModelFigures
    data: DataFigures
    memory: MemoryFigures
    fits: bool
    suggestions: tuple[Suggestion, ...] = ()
    probe: ProbeFigures | None = None
    notes: tuple[str, ...] = ()
    """Sentences about what was assumed or could not be done."""
    version: int = field(default=VERSION)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)
