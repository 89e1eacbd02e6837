"""How much memory a training step takes, told before it runs, and how much there is.

    weights + optimizer + helpers + the larger of
        the backward pass:  copies + activations + logits + work (+ gradients, where several batches make a step)
        the update:         gradients + work

Nothing is allocated: the model may stand on torch's meta device. What a decoder layer keeps for the backward pass is a
sum over its widths, with factors that were counted on transformers 5.23 by saved-tensor hooks (the tests count them
again).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from ..extras.device import DeviceFacts, device_facts
from ..ops.head import CPU_MEMORY, DEVICE_MEMORY
from .quantization.sizes import Packing, largest_packed, weight_bytes


if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FLOAT32 = 4
OPTIMIZER_STATES = 2  # AdamW's two averages
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
KEPT_QUANTIZED = {"half": Kept(7.0, 3.0, 2.0, 4.0), "float32": Kept(4.0, 3.0, 2.0, 4.0)}
"""Adapters on packed weights that model/fused does not cover; norms and rotations have their faster form."""
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
    checkpointed_layers: int = 0
    """Layers, from the first, that keep their input only."""
    is_offloaded: bool = False
    """Those inputs are kept in main memory, beside an accelerator."""
    is_accumulated: bool = True
    """Several batches make a step, so gradients are there while activations are; else they take their place."""
    optimizer: "OptimizerBytes | None" = None
    """What the optimizer keeps; None takes AdamW's two numbers, in the format of each trained weight."""
    is_fused: bool = False
    """The modules have the replacements of model/fused."""
    masked_len: int = 0
    """Length of the rows of an attention that keeps a mask in every layer; 0 for one that takes bounds."""
    num_shards: int = 1
    """Devices that weights, gradients and optimizer are split over (FSDP, ZeRO-3)."""
    is_rounded: bool = False
    """Linear layers round their weights for each product (QAT)."""
    keeps_logits: bool = False
    """The loss looks at log-probabilities of whole answers, for which products of the head are kept."""
    helpers: int = 0
    """Bytes of frozen models beside the one in training."""
    packing: Packing | None = None
    """How a model that is not quantized yet will be; None takes the weights as they are."""


class OptimizerBytes(NamedTuple):
    """What an optimizer needs on one device, when nothing is sharded."""

    states: int
    gradients: int
    update: int
    saved: int = 0
    """Bytes of weights that are gone, because the optimizer keeps them in fewer bits."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes on one device."""

    weights: int
    gradients: int
    """Of all weights that have one at the same time."""
    optimizer: int
    activations: int
    """What the layers keep for the backward pass."""
    logits: int
    copies: int
    """Trained matrices rounded to the format of the products."""
    work: int
    """What the backward pass of one layer, and the gradient of the head, need for a moment."""
    update: int
    """What the optimizer needs for a moment."""
    helpers: int
    is_accumulated: bool = True

    @property
    def total(self) -> int:
        """The peak of a step: not all parts exist at once."""
        return self.weights + self.optimizer + self.helpers + max(self.backward, self.gradients + self.update)

    @property
    def backward(self) -> int:
        """What the forward and backward pass put on top of everything that stays."""
        passing = self.copies + self.activations + self.logits + self.work
        return passing + self.gradients if self.is_accumulated else max(passing, self.gradients)

    @property
    def is_updating(self) -> bool:
        """Whether the peak is in the update, not in the backward pass."""
        return self.gradients + self.update >= self.backward

    @property
    def beyond_weights(self) -> int:
        """What comes on top of a model that is already there."""
        return self.total - self.weights


def estimate_step(model: nn.Module, shape: StepShape) -> MemoryEstimate:
    """Estimate the peak of a training step of a loaded (or meta) model with its trained weights marked."""
    weights = list(model.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    config = _text_config(model)
    is_frozen = sum(weight.numel() for weight in trained) * 2 < sum(weight.numel() for weight in weights)
    size = _bytes(trained)
    optimizer = shape.optimizer or OptimizerBytes(OPTIMIZER_STATES * size, size, 0)
    logits, head = head_bytes(model, config, shape)
    return MemoryEstimate(
        weights=(weight_bytes(model, shape.packing) - optimizer.saved) // shape.num_shards,
        gradients=optimizer.gradients // shape.num_shards,
        optimizer=optimizer.states // shape.num_shards,
        activations=activation_bytes(config, shape, is_frozen=is_frozen),
        logits=logits,
        copies=copy_bytes(trained, shape.compute_dtype) + rounded_bytes(model, config, shape),
        work=work_bytes(config, shape) + head + largest_packed(model, shape.packing) * shape.compute_dtype.itemsize,
        update=optimizer.update // shape.num_shards,
        helpers=shape.helpers,
        is_accumulated=shape.is_accumulated,
    )


def copy_bytes(trained: list[nn.Parameter], dtype: torch.dtype) -> int:
    """Trained matrices in a wider format than the products are computed in have a rounded copy each.

    It lives until the backward pass is over: autocast and the fused modules keep it.
    """
    return sum(
        weight.numel() * dtype.itemsize
        for weight in trained
        if weight.dim() > 1 and weight.element_size() > dtype.itemsize
    )


def rounded_bytes(model: nn.Module, config: "PreTrainedConfig", shape: StepShape) -> int:
    """Return what the layers that feel rounding (QAT) keep: their weights in float32, and rounded.

    The rounded ones of trained matrices in a wider format are among `copy_bytes`. A layer that is computed again
    keeps nothing until then.
    """
    if not shape.is_rounded:
        return 0
    inner: Any = model
    base = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    head, unit, size = base.get_output_embeddings(), shape.compute_dtype.itemsize, 0
    for name, module in model.named_modules():
        if type(module) is nn.Linear and module is not head and "lora_" not in name:
            is_counted = module.weight.requires_grad and module.weight.element_size() > unit
            size += module.weight.numel() * (FLOAT32 + (0 if is_counted else unit))
    num_layers = int(config.num_hidden_layers)
    whole = max(num_layers - min(shape.checkpointed_layers, num_layers), 1)
    return size * whole // num_layers


def activation_bytes(config: "PreTrainedConfig", shape: StepShape, *, is_frozen: bool) -> int:
    """Return what all layers keep for the backward pass, with the embeddings and the last norm."""
    unit = shape.compute_dtype.itemsize
    width = int(config.hidden_size)
    layer = (layer_numbers(config, shape, is_frozen=is_frozen) + shape.masked_len) * unit
    num_layers = int(config.num_hidden_layers)
    again = min(shape.checkpointed_layers, num_layers)
    inputs = 0 if shape.is_offloaded else again * width * unit
    whole = max(num_layers - again, 1)  # the layer that is computed again; by then the others are gone
    ends = 3 * width * unit
    return int(shape.tokens * (inputs + whole * layer + ends))


def work_bytes(config: "PreTrainedConfig", shape: StepShape) -> int:
    """Return the gradients inside of the layer that is being differentiated."""
    inner = int(getattr(config, "intermediate_size", None) or 4 * int(config.hidden_size))
    return int(BACKWARD_WIDTHS * inner * shape.compute_dtype.itemsize * shape.tokens)


def layer_numbers(config: "PreTrainedConfig", shape: StepShape, *, is_frozen: bool) -> float:
    """Return how many numbers a decoder layer keeps for each token."""
    table = KEPT_FUSED if shape.is_fused else KEPT
    width_name = "half" if shape.compute_dtype.itemsize < FLOAT32 else "float32"
    is_own = shape.packing is not None and not shape.is_fused
    kept = KEPT_QUANTIZED[width_name] if is_own else table[width_name, "frozen" if is_frozen else "trained"]
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


def head_bytes(model: nn.Module, config: "PreTrainedConfig", shape: StepShape) -> tuple[int, int]:
    """Return what the logits take, and the gradient of the head where it learns.

    Products are made in chunks, so they have a bound, unless the loss keeps them. The gradient of the head is there
    from the forward pass on (ops/cross_entropy.py), in the format of the weight; the share of a chunk beside it.
    """
    memory = CPU_MEMORY if device_facts().kind == "cpu" else DEVICE_MEMORY
    unit = shape.compute_dtype.itemsize
    every = shape.tokens * int(config.vocab_size) * unit
    logits = min(every, memory.chunk)
    if shape.keeps_logits:
        logits += every if every <= memory.kept else 0
    weight = _head_weight(model)
    if weight is None or not weight.requires_grad:
        return logits, 0
    return logits, weight.numel() * (weight.element_size() + unit)


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


def _head_weight(model: nn.Module) -> nn.Parameter | None:
    inner: Any = model
    base = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    weight = getattr(head, "weight", None)
    return weight if isinstance(weight, nn.Parameter) else None


def _bytes(weights: list[nn.Parameter]) -> int:
    return sum(weight.numel() * weight.element_size() for weight in weights)


def _text_config(model: nn.Module) -> "PreTrainedConfig":
    inner: Any = model
    return inner.config.get_text_config()
