"""A decoder layer of transformers that computes some tokens only. Shapes: B rows, T tokens, D hidden, K computed."""

import inspect
from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...extras.errors import UserError
from ..freeze import layer_stack
from ..model_utils.mixture import find_routers
from ..model_utils.wrapping import unwrapped
from .router import Choice, DepthRouter


PART = "depth"
"""What the router of a layer is called in it."""
SEED = 0
"""Routers are drawn again by a resumed run before their weights are read, so nothing else may enter."""


class Depths:
    """The routers of a model."""

    def __init__(self, model: nn.Module, routers: Sequence[DepthRouter]) -> None:
        self.routers = tuple(routers)
        self._is_taken = False
        model.register_forward_pre_hook(self._begin)

    def take(self, batch: Any = None) -> Tensor | None:
        """Return how wrong the guesses since the last call were, as a mean over layers and tokens."""
        self._is_taken = True
        terms = [term for router in self.routers if (term := router.take()) is not None and term.requires_grad]
        return torch.stack(terms).mean() if terms else None

    def _begin(self, model: nn.Module, args: Any) -> None:
        """Forget what the backward pass after the last `take` computed again (activation checkpointing)."""
        if self._is_taken:
            self._is_taken = False
            for router in self.routers:
                router.heard.clear()


def depths_of(model: nn.Module) -> Depths | None:
    """Return the routers of a model; None where it has none."""
    base = unwrapped(model)
    routers = [module for module in base.modules() if isinstance(module, DepthRouter)]
    return Depths(base, routers) if routers else None


def add_routers(model: PreTrainedModel, layers: Sequence[int], capacity: float) -> list[DepthRouter]:
    """Give the layers with these numbers routers, in place."""
    refuse_unfit(model)
    prefix, _ = layer_stack(model)
    width = model.config.get_text_config().hidden_size
    routers: list[DepthRouter] = []
    for index in layers:
        layer = model.get_submodule(f"{prefix}{index}")
        weight = next(layer.parameters())
        router = DepthRouter(width, capacity, SEED + index).to(device=weight.device, dtype=weight.dtype)
        layer.add_module(PART, router)
        vars(layer)["forward"] = MethodType(compute_some, layer)
        routers.append(router)
    return routers


def refuse_unfit(model: PreTrainedModel) -> None:
    """Refuse a model whose layers are called in another way than rotary decoders are."""
    prefix, _ = layer_stack(model)
    layer = model.get_submodule(f"{prefix}0")
    reason = None
    if "position_embeddings" not in inspect.signature(type(layer).forward).parameters:
        reason = "its layers get no rotary positions from outside"
    elif find_routers(model):
        reason = "it is a mixture of experts already"
    elif any("linear" in str(kind) or "conv" in str(kind) for kind in kinds_of(model)):
        reason = "some of its layers keep a running state"
    if reason is not None:
        raise UserError(f"mixture_of_depths does not fit {type(model).__name__}: {reason}; remove it.")


def kinds_of(model: PreTrainedModel) -> Sequence[Any]:
    """Return what the config calls the layers."""
    return getattr(model.config.get_text_config(), "layer_types", None) or ()


def compute_some(layer: nn.Module, hidden_states: Tensor, **given: Any) -> Tensor:
    """The forward function of a layer with a router: [B, T, D] to [B, T, D]."""
    if given.get("past_key_values") is not None:
        raise UserError(
            "A mixture of depths cannot keep keys and values: each layer has those of other tokens. Call it with "
            "use_cache=False."
        )
    router: DepthRouter = getattr(layer, PART)
    hidden_BTD, mask = hidden_states, given.get("attention_mask")
    numbers_BT, guesses_BT = router(hidden_BTD)
    choice = router.choose(numbers_BT, guesses_BT, real_tokens(mask, hidden_BTD))
    if not choice.tokens_BK.shape[1]:
        return hidden_BTD
    places_BKD = choice.tokens_BK.unsqueeze(-1).expand(-1, -1, hidden_BTD.shape[-1])
    chosen_BKD = hidden_BTD.gather(1, places_BKD)
    computed_BKD = type(layer).forward(layer, chosen_BKD, **for_some(given, choice, hidden_BTD.shape[1]))
    factors_BK = numbers_BT.gather(1, choice.tokens_BK) * choice.is_real_BK
    added_BKD = (computed_BKD - chosen_BKD) * factors_BK.unsqueeze(-1).to(hidden_BTD.dtype)
    return hidden_BTD.scatter_add(1, places_BKD, added_BKD.to(hidden_BTD.dtype))


def real_tokens(mask: Tensor | None, hidden_BTD: Tensor) -> Tensor:
    """Tell which tokens are no padding, [B, T]: a real token sees itself."""
    if mask is None:
        return torch.ones(hidden_BTD.shape[:2], dtype=torch.bool, device=hidden_BTD.device)
    own_BT = mask[:, 0].diagonal(dim1=-2, dim2=-1)
    return (own_BT if own_BT.dtype == torch.bool else own_BT == 0).expand(hidden_BTD.shape[:2])


def for_some(given: dict[str, Any], choice: Choice, length: int) -> dict[str, Any]:
    """Return what a layer is given besides hidden states, for the chosen tokens."""
    tokens_BK = choice.tokens_BK
    num_rows = tokens_BK.shape[0]

    def pick(numbers_BTX: Tensor) -> Tensor:
        wide = numbers_BTX.expand(num_rows, *numbers_BTX.shape[1:])
        places = tokens_BK.view(*tokens_BK.shape, *[1] * (wide.dim() - 2))
        return wide.gather(1, places.expand(-1, -1, *wide.shape[2:]))

    some = dict(given)
    if isinstance(given.get("position_ids"), Tensor):
        some["position_ids"] = pick(given["position_ids"])
    some["position_embeddings"] = tuple(pick(part) for part in given["position_embeddings"])
    if given.get("attention_mask") is not None:
        some["attention_mask"] = pick_mask(given["attention_mask"], choice, length)
    return some


def pick_mask(mask_BHTT: Tensor, choice: Choice, length: int) -> Tensor:
    """Take the rows and columns of the chosen tokens out of a mask; nobody sees a filler.

    Without a mask the kernel is causal by itself, and stays so: the chosen tokens are in order, fillers behind them.
    """
    tokens_BK = choice.tokens_BK
    (num_rows, num_places), num_heads = tokens_BK.shape, mask_BHTT.shape[1]
    wide = mask_BHTT[..., :length].expand(num_rows, -1, -1, -1)
    rows = wide.gather(2, tokens_BK[:, None, :, None].expand(-1, num_heads, -1, length))
    some = rows.gather(3, tokens_BK[:, None, None].expand(-1, num_heads, num_places, -1))
    is_real = choice.is_real_BK[:, None, None]
    if some.dtype == torch.bool:
        return some & is_real | ~is_real.transpose(2, 3)  # who sees nothing gets no number, which spreads
    return some.masked_fill(~is_real, torch.finfo(some.dtype).min)
