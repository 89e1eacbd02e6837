"""The loss that keeps the experts of a mixture evenly used (arxiv.org/abs/2101.03961), over real tokens only.

Routers are listened to while the model computes: the tensors that a hook sees carry the gradient. transformers would
add its own loss only where it computes the whole loss itself, which no stage here lets it do.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...extras.errors import UserError
from ...extras.logging import get_logger
from ...ops.load_balance import load_balance
from .wrapping import unwrapped


logger = get_logger(__name__)

COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_alpha", "aux_loss_coef")
"""What models call the weight of this loss in their configs."""


class Balance:
    """Listens to the routers of a model and tells how unevenly they used the experts."""

    def __init__(self, model: nn.Module, routers: Mapping[nn.Module, int | None], top_k: int, weight: float) -> None:
        self.top_k = top_k
        self.weight = weight
        self._heard: list[Tensor] = []
        self._is_taken = False
        model.register_forward_pre_hook(self._begin)
        self._places = {id(router): place for router, place in routers.items()}
        for router in routers:
            router.register_forward_hook(self._hear)

    def take(self, batch: Mapping[str, Any]) -> Tensor | None:
        """Return the weighted loss of the forward passes since the last call; None where no router was heard."""
        heard, self._heard, self._is_taken = self._heard, [], True
        if not heard:
            return None
        layers_TE = [logits.flatten(0, -2) for logits in heard]
        mask = batch.get("attention_mask")
        is_known = isinstance(mask, Tensor) and all(mask.numel() == len(layer) for layer in layers_TE)
        mask_T = mask.flatten() if isinstance(mask, Tensor) and is_known else None
        return self.weight * load_balance(layers_TE, self.top_k, mask_T)

    def _begin(self, model: nn.Module, args: Any) -> None:
        """Forget what the backward pass after the last `take` computed again (activation checkpointing)."""
        if self._is_taken:
            self._heard, self._is_taken = [], False

    def _hear(self, router: nn.Module, args: Any, output: Any) -> None:
        if torch.is_grad_enabled() and router.training:
            place = self._places[id(router)]
            self._heard.append(output if place is None else output[place])


def balance_of(model: nn.Module, weight: float | None) -> Balance | None:
    """Make the listener for a model; None where no balance is asked for, by the user or by the model's own config."""
    base: Any = unwrapped(model)
    config = base.config.get_text_config() if hasattr(base, "config") else None
    if weight is None and getattr(config, "output_router_logits", False):
        weight = next((getattr(config, name) for name in COEFFICIENTS if hasattr(config, name)), None)
    if not weight:
        return None
    routers = find_routers(base)
    if not routers:
        raise UserError(
            f"moe_aux_loss_coef {weight} needs a mixture of experts whose routers are known to transformers; "
            f"{type(base).__name__} is none, so remove it."
        )
    logger.info("The balance of %s routers is part of the loss, with weight %s.", len(routers), weight)
    return Balance(base, routers, int(getattr(config, "num_experts_per_tok", 1)), weight)


def find_routers(model: nn.Module) -> dict[nn.Module, int | None]:
    """Return the routers of a model, each with the place of its logits in what it returns; None for all of it."""
    recorder: Any = next(
        (
            getattr(module, "_can_record_outputs", {})["router_logits"]
            for module in model.modules()
            if "router_logits" in (getattr(module, "_can_record_outputs", None) or {})
        ),
        None,
    )
    if recorder is None:
        return {}
    kind = getattr(recorder, "target_class", recorder)
    place = getattr(recorder, "index", None)
    return {module: place for module in model.modules() if isinstance(module, kind)}
