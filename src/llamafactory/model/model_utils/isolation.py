"""Does a model keep the documents of a row apart? It is asked, not looked up in a list of architectures.

Attention over joined rows goes by positions and bounds. Layers with a running state, convolutions over time, positions
that are not passed on and kernels with bounds of their own may all let a document see the one before it, and nothing
would say so: the loss even looks better. A few short forward passes tell.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ...data.batch import sequence_bounds
from ...extras.errors import UserError
from .attention import takes_bounds
from .threads import few_threads
from .wrapping import has_virtual_tokens, unwrapped


LENGTH = 8  # tokens of each document
# Shares of the change that a document makes to the next one in a row without bounds. Rounding makes a hundredth of
# these; a leak makes about 1 in a model that was trained, and 7e-4 or more in one with fresh weights.
TOLERATED_FP32 = 1e-4
TOLERATED_HALF = 5e-2
ADVICE = "set packing: false and padding_free: false"
"""What to do about a leak."""


def require_isolation(model: nn.Module) -> None:
    """Refuse a model in which one document of a row reaches into another."""
    leak = find_leak(model)
    if leak is not None:
        raise UserError(f"{leak}; {ADVICE}.")


def find_leak(model: nn.Module) -> str | None:
    """Return the sentence that says why documents cannot share a row in this model; None where they can."""
    base = unwrapped(model)
    if has_virtual_tokens(model):
        return "Virtual tokens stand before every row, and documents in one row would share them"
    if "position_ids" not in inspect.signature(base.forward).parameters:
        reason = "it takes no position_ids"
    else:
        share = measure_leak(model)
        if share <= tolerated(model):
            return None
        reason = f"a document changes the next one in its row, by {share:.2g} of what it does in plain joined text"
    return f"{type(base).__name__} cannot keep the documents of a packed row apart ({reason})"


def gets_bounds(model: nn.Module) -> bool:
    """Whether batches should bring the bounds of documents: the kernel uses them and the model passes them on."""
    return takes_bounds(model) and accepts_bounds(model)


def accepts_bounds(model: nn.Module) -> bool:
    """Whether the forward pass of a model takes arguments that it only passes on."""
    parameters = inspect.signature(unwrapped(model).forward).parameters.values()
    return any(item.kind is item.VAR_KEYWORD for item in parameters)


def measure_leak(model: nn.Module) -> float:
    """Return how far a document moves the next one, as a share of what it does without bounds.

    The next document must neither follow the tokens before it nor differ from itself in a row of its own. A row holds
    [first, second, first and second as one document], so two rows and the lone document tell all.
    """
    first, other, second = make_documents(model)
    restarted = torch.arange(LENGTH, device=first.device)
    positions = torch.cat([restarted, restarted, torch.arange(2 * LENGTH, device=first.device)])
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), few_threads(model):
            row = states_behind(model, torch.cat([first, second, first, second]), positions)
            moved_row = states_behind(model, torch.cat([other, second, other, second]), positions)
            alone = states_behind(model, second, restarted)
    finally:
        model.train(was_training)
    packed, moved = row[LENGTH : 2 * LENGTH], moved_row[LENGTH : 2 * LENGTH]
    joined, joined_moved = row[-LENGTH:], moved_row[-LENGTH:]
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


def states_behind(model: nn.Module, ids: Tensor, positions: Tensor) -> Tensor:
    """Return what the model makes of each token, computed as in training: states before the head, [tokens, width].

    The whole model is called, as it is wrapped; a head may look at some tokens only (a score per sequence does).
    """
    base: Any = unwrapped(model)
    decoder = getattr(base, "base_model", None)
    states: list[Tensor] = []
    inputs: dict[str, Any] = {"input_ids": ids.unsqueeze(0), "position_ids": positions.unsqueeze(0)}
    if gets_bounds(model):
        inputs |= sequence_bounds(inputs["position_ids"])
    if not isinstance(decoder, nn.Module) or decoder is base:
        return model(**inputs, use_cache=False).logits[0].float()
    hook = decoder.register_forward_hook(lambda module, args, output: states.append(output[0]))
    try:
        model(**inputs, use_cache=False)
    finally:
        hook.remove()
    return states[0][0].float()


def tolerated(model: nn.Module) -> float:
    """Return the share that rounding may explain in the format that the model computes in."""
    weight = next(model.parameters())
    is_full = weight.dtype is torch.float32 and not torch.is_autocast_enabled(weight.device.type)
    return TOLERATED_FP32 if is_full else TOLERATED_HALF


def distances(some: Tensor, others: Tensor) -> Tensor:
    """Return how far apart the states of each token are."""
    return (some - others).norm(dim=-1)
