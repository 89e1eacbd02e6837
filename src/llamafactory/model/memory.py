"""How much memory a training step takes, told before it runs, and how much there is.

    weights + gradients + optimizer + activations + logits

Nothing is allocated: the model may stand on torch's meta device. What a decoder layer keeps for the backward pass is a
sum over its widths, with factors that were counted on transformers 5.23 by saved-tensor hooks (the tests count them
again).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from ..extras.device import DeviceFacts


if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FLOAT32 = 4
OPTIMIZER_STATES = 2  # AdamW's two averages
LOGITS_AT_ONCE = 128 * 2**20  # ops/head.py: products of one chunk, in whose place their gradient is made
BACKWARD_WIDTHS = 2.0  # gradients of the widest inner layer that live while it is being differentiated
CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


class Kept(NamedTuple):
    """Numbers that a layer keeps for each token, as multiples of its widths: hidden, queries, keys, inner."""

    hidden: float
    queries: float
    keys: float
    inner: float


# By number format (half precision under autocast, or float32) and by whether the matrices are frozen (LoRA) or learn.
# Unit: one number of the compute format. A norm keeps its input in float32, which is two numbers of half precision.
KEPT = {
    ("half", "frozen"): Kept(9.0, 3.0, 2.0, 4.0),
    ("half", "trained"): Kept(13.0, 2.0, 2.0, 4.0),
    ("float32", "frozen"): Kept(4.0, 2.0, 2.0, 4.0),
    ("float32", "trained"): Kept(6.0, 2.0, 2.0, 4.0),
}
KEPT_FUSED = {
    ("half", "frozen"): Kept(4.0, 3.0, 2.0, 2.0),
    ("half", "trained"): Kept(8.0, 3.0, 2.0, 2.0),
    ("float32", "frozen"): Kept(4.0, 3.0, 2.0, 2.0),
    ("float32", "trained"): Kept(4.0, 3.0, 2.0, 2.0),
}
"""The same with the replacements of model/fused, which compute cheap things again instead of keeping them."""


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """What one forward and backward pass works on."""

    tokens: int
    """Most tokens of a batch, padding included: all of its activations exist at once."""
    compute_dtype: torch.dtype = torch.bfloat16
    """Number format of the matrix products."""
    is_checkpointed: bool = False
    """Layers keep their input only."""
    is_accumulated: bool = True
    """Several batches make a step, so gradients are there while activations are; else they take their place."""
    optimizer_states: int = OPTIMIZER_STATES
    """Numbers that the optimizer keeps for every trained weight, in the format of the weight."""
    is_fused: bool = False
    """The modules have the replacements of model/fused."""
    masked_len: int = 0
    """Length of the rows of an attention that keeps a mask in every layer; 0 for one that takes bounds."""
    num_shards: int = 1
    """Devices that weights, gradients and optimizer are split over (FSDP, ZeRO-3)."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes on one device at the peak of a step."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits

    @property
    def beyond_weights(self) -> int:
        """What comes on top of a model that is already there."""
        return self.total - self.weights


def estimate_step(model: nn.Module, shape: StepShape) -> MemoryEstimate:
    """Estimate the peak of a training step of a loaded (or meta) model with its trained weights marked.

    Trained matrices in a wider format than the products are computed in have a rounded copy each, which autocast
    keeps until the backward pass is over; it is counted with the activations.
    """
    weights = list(model.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    copies = sum(
        weight.numel() * shape.compute_dtype.itemsize
        for weight in trained
        if weight.dim() > 1 and weight.element_size() > shape.compute_dtype.itemsize
    )
    config = _text_config(model)
    is_frozen = sum(weight.numel() for weight in trained) * 2 < sum(weight.numel() for weight in weights)
    gradients = _bytes(trained) // shape.num_shards
    activations = copies + activation_bytes(config, shape, is_frozen=is_frozen)
    return MemoryEstimate(
        weights=_bytes(weights) // shape.num_shards,
        gradients=gradients if shape.is_accumulated else max(gradients - activations, 0),
        optimizer=shape.optimizer_states * _bytes(trained) // shape.num_shards,
        activations=activations,
        logits=logit_bytes(config, shape),
    )


def activation_bytes(config: "PreTrainedConfig", shape: StepShape, *, is_frozen: bool) -> int:
    """Return what all layers keep for the backward pass, and what one of them needs while it is differentiated."""
    unit = shape.compute_dtype.itemsize
    layer = layer_numbers(config, shape, is_frozen=is_frozen) * unit
    width = int(config.hidden_size)
    inner = BACKWARD_WIDTHS * int(getattr(config, "intermediate_size", 4 * width)) * unit
    num_layers = int(config.num_hidden_layers)
    layer += shape.masked_len * unit
    kept = num_layers * width * unit + layer if shape.is_checkpointed else num_layers * layer
    ends = 3 * width * unit  # embeddings, the last norm, and the gradient that travels down
    return int(shape.tokens * (kept + inner + ends))


def layer_numbers(config: "PreTrainedConfig", shape: StepShape, *, is_frozen: bool) -> float:
    """Return how many numbers a decoder layer keeps for each token."""
    table = KEPT_FUSED if shape.is_fused else KEPT
    is_half = shape.compute_dtype.itemsize < FLOAT32
    kept = table["half" if is_half else "float32", "frozen" if is_frozen else "trained"]
    width, heads = int(config.hidden_size), int(config.num_attention_heads)
    head = int(getattr(config, "head_dim", None) or width // heads)
    keys = int(getattr(config, "num_key_value_heads", None) or heads) * head
    inner = int(getattr(config, "intermediate_size", None) or 4 * width)
    experts = int(getattr(config, "num_experts_per_tok", None) or 1)
    expert_width = int(getattr(config, "moe_intermediate_size", None) or inner)
    return (
        kept.hidden * width
        + kept.queries * heads * head
        + kept.keys * keys
        + kept.inner * (experts * expert_width if experts > 1 else inner)
    )


def logit_bytes(config: "PreTrainedConfig", shape: StepShape) -> int:
    """Return what the logits take: they are made in chunks, so this has a bound."""
    every = shape.tokens * int(config.vocab_size) * shape.compute_dtype.itemsize
    return min(every, LOGITS_AT_ONCE)


def free_memory(facts: DeviceFacts, num_sharing: int = 1) -> int:
    """Return the bytes that this process may still take; on a CPU shared between `num_sharing` processes."""
    if facts.kind == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    if facts.kind in ("npu", "xpu"):
        backend: Any = getattr(torch, facts.kind)
        return int(backend.mem_get_info()[0])
    return free_main_memory() // max(num_sharing, 1)


def free_main_memory(root: Path = Path("/")) -> int:
    """Return what the machine has free, or what is left below the limit of a container, whichever is less."""
    free = _available(root)
    for limit_file, used_file in CGROUP_FILES:
        limit, used = _number(root / limit_file.lstrip("/")), _number(root / used_file.lstrip("/"))
        if limit is not None and used is not None:
            free = min(free, max(limit - used, 0))
    return free


def _available(root: Path) -> int:
    info = root / "proc/meminfo"
    if info.is_file():
        for line in info.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024

    import os

    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):  # macOS: half of the machine is a safe guess
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return 8 * 2**30  # Windows says nothing without a further package


def _number(path: Path) -> int | None:
    """Read a limit; a container without one says "max" or a number near 2^63."""
    if not path.is_file():
        return None
    text = path.read_text(encoding="ascii").strip()
    return int(text) if text.isdigit() else None


def _bytes(weights: list[nn.Parameter]) -> int:
    return sum(weight.numel() * weight.element_size() for weight in weights)


def _text_config(model: nn.Module) -> "PreTrainedConfig":
    inner: Any = model
    return inner.config.get_text_config()
