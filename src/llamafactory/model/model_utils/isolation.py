"""Does a model keep the documents of a packed row apart? It is asked, not looked up in a list of architectures.

Attention over packed rows goes by the position ids. Layers with a running state, convolutions over time, positions
that are not passed on and kernels with bounds of their own may all let a document see the one before it, and nothing
would say so: the loss even looks better. Three short forward passes tell.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ...extras.errors import UserError


LENGTH = 8  # tokens of each document
# Shares of the change that a document makes to the next one in a row without bounds. Rounding makes a hundredth of
# these; a leak makes about 1 in a model that was trained, and 7e-4 or more in one with fresh weights.
TOLERATED_FP32 = 1e-4
TOLERATED_HALF = 5e-2


def require_isolation(model: nn.Module) -> None:
    """Refuse a model in which one document of a packed row reaches into another."""
    name = type(unwrapped(model)).__name__
    if "position_ids" not in inspect.signature(unwrapped(model).forward).parameters:
        reason = "it takes no position_ids"
    else:
        share = measure_leak(model)
        if share <= tolerated(model):
            return
        reason = f"a document changes the next one in its row, by {share:.2g} of what it does in plain joined text"
    raise UserError(
        f"{name} cannot keep the documents of a packed row apart ({reason}); set packing: false and "
        "padding_free: false."
    )


def measure_leak(model: nn.Module) -> float:
    """Return how far a document moves the logits of the next one, as a share of what it does without bounds.

    The next document must neither follow the tokens before it nor differ from itself in a row of its own.
    """
    first, other, second = make_documents(model)
    restarted = torch.arange(LENGTH, device=first.device).repeat(2)
    running = torch.arange(2 * LENGTH, device=first.device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            packed = logits_behind(model, torch.cat([first, second]), restarted)
            moved = logits_behind(model, torch.cat([other, second]), restarted)
            alone = logits_behind(model, second, restarted[:LENGTH])
            joined = logits_behind(model, torch.cat([first, second]), running)
            joined_moved = logits_behind(model, torch.cat([other, second]), running)
    finally:
        model.train(was_training)
    # Equal shapes are rounded alike, so one moved token tells (a short convolution reaches no further). A row of
    # another length is not: there the middle token decides, lest one expert that rounding switches refuses a model.
    leak = torch.maximum(distances(packed, moved).max(), distances(packed, alone).median())
    return float(leak / distances(joined, joined_moved).max().clamp_min(torch.finfo(torch.float32).tiny))


def make_documents(model: nn.Module) -> Tensor:
    """Draw three documents, the same for every call."""
    base: Any = unwrapped(model)
    num_tokens: int = base.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    return torch.randint(0, num_tokens, (3, LENGTH), generator=generator).to(device)


def logits_behind(model: nn.Module, ids: Tensor, positions: Tensor) -> Tensor:
    """Return the logits of the last LENGTH tokens, computed as in training."""
    output = model(input_ids=ids.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False)
    return output.logits[0, -LENGTH:].float()


def tolerated(model: nn.Module) -> float:
    """Return the share that rounding may explain in the format that the model computes in."""
    weight = next(model.parameters())
    is_full = weight.dtype is torch.float32 and not torch.is_autocast_enabled(weight.device.type)
    return TOLERATED_FP32 if is_full else TOLERATED_HALF


def distances(some: Tensor, others: Tensor) -> Tensor:
    """Return how far apart the logits of each token are."""
    return (some - others).norm(dim=-1)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model under adapters and data-parallel wrappers."""
    inner: Any = model
    while True:
        if isinstance(getattr(inner, "module", None), nn.Module):
            inner = inner.module
        elif hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        else:
            return inner
