"""AdaLoRA (arxiv.org/abs/2303.10512): the rank moves to the layers that need it while training runs.

An update is P diag(E) Q. All layers start with more directions than they will keep; after each step the least
important of all layers are set to 0, until the wanted mean rank is reached. What was cut is kept in the files as
zeros, so that shapes never change and a checkpoint can be resumed; PEFT calls it `rank_pattern` and would drop it.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from peft import AdaLoraConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from ...extras.logging import get_logger
from ..request import LoadRequest
from .carried import Carried, carry
from .lora import lora_targets, shared_options


logger = get_logger(__name__)

UNKNOWN_STEPS = 2**31
"""Stands for the length of the run until it is known."""
SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What the allocator remembers of every weight."""


def adalora_config(model: PreTrainedModel, request: LoadRequest) -> AdaLoraConfig:
    """Return the config; the lengths of the phases are set when the number of steps is known."""
    args = request.finetuning_args
    targets = lora_targets(model, args, request.head)
    if targets.parameters:
        logger.info("The joined experts of this model stay as they are: only finetuning_type lora can adapt them.")
    first = args.adalora_init_rank or -(-3 * args.lora_rank // 2)
    logger.info("AdaLoRA of rank %s, from %s, on: %s.", args.lora_rank, first, targets)
    return AdaLoraConfig(
        target_r=args.lora_rank,
        init_r=first,
        lora_alpha=args.lora_alpha or 2 * args.lora_rank,
        lora_dropout=args.lora_dropout,
        deltaT=args.adalora_interval,
        orth_reg_weight=args.adalora_orth_weight,
        total_step=UNKNOWN_STEPS,
        target_modules=targets.modules,
        **shared_options(model, request, trains_rows=False),
    )


def ready_adalora(model: PeftModel, request: LoadRequest | None) -> Carried:
    """Let the model save and read back what its allocator has seen."""
    _freeze_first_ranks(model)
    return carry(model, Carried(lambda: _collect(model), lambda tensors: _restore(model, tensors)))


class Ranks:
    """The directions of an AdaLoRA model, as training moves them."""

    def __init__(self, model: PeftModel) -> None:
        self._tuner: Any = model.base_model
        self.config = cast(AdaLoraConfig, model.active_peft_config)

    def plan(self, num_steps: int, start: int, end: int) -> None:
        """Set the phases: all directions for `start` steps, fewer and fewer, and fixed for the last `end` steps."""
        self.config.total_step, self.config.tinit, self.config.tfinal = num_steps, start, end

    def update(self, step: int) -> None:
        """Weigh all directions by the gradients of a step, counted from 1, and set the least important ones to 0."""
        allocator = self._tuner.rankallocator
        self.config.rank_pattern = vars(allocator).get("kept")
        self._tuner.update_and_allocate(step)
        vars(allocator)["kept"], self.config.rank_pattern = self.config.rank_pattern, None

    def kept(self) -> dict[str, int]:
        """Return how many directions of each layer are not 0."""
        name = self._tuner.trainable_adapter_name
        values = {key: value for key, value in self._tuner.model.named_parameters() if f"lora_E.{name}" in key}
        return {key: int(value.count_nonzero()) for key, value in values.items()}

    def penalty(self) -> Tensor:
        """How far the directions are from orthogonal: the mean of |P^T P - I| and |Q Q^T - I| over all layers."""
        name = self._tuner.trainable_adapter_name
        terms: list[Tensor] = []
        for key, weight in self._tuner.model.named_parameters():
            if f"lora_A.{name}" in key:
                terms.append(_distance(weight @ weight.T))
            elif f"lora_B.{name}" in key:
                terms.append(_distance(weight.T @ weight))
        return torch.stack(terms).mean() * self.config.orth_reg_weight


def ranks_of(model: torch.nn.Module) -> Ranks | None:
    """Return the directions of a model in training; None for one that is no AdaLoRA."""
    inner = next((module for module in model.modules() if isinstance(module, PeftModel)), None)
    is_adalora = inner is not None and isinstance(inner.active_peft_config, AdaLoraConfig)
    return Ranks(inner) if inner is not None and is_adalora and not inner.active_peft_config.inference_mode else None


def _freeze_first_ranks(model: PeftModel) -> None:
    """Keep the number that each update is divided by from learning.

    PEFT 0.21 holds it as a parameter, does not save it, and makes a new one that learns wherever it makes it float32:
    over a bfloat16 base, and again when a checkpoint is read.
    """
    for name, weight in model.named_parameters():
        if ".ranknum." in name:
            weight.requires_grad_(False)


def _distance(product: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(product - torch.eye(len(product), dtype=product.dtype, device=product.device))


def _collect(model: PeftModel) -> dict[str, Tensor]:
    tuner: Any = model.base_model
    allocator = vars(tuner.rankallocator)
    tensors = {f"{score}:{key}": value for score in SCORES for key, value in allocator[score].items()}
    pattern = allocator.get("kept") or {}
    return tensors | {f"kept:{key}": torch.tensor(value, dtype=torch.bool) for key, value in pattern.items()}


def _restore(model: PeftModel, tensors: Mapping[str, Tensor]) -> None:
    tuner: Any = model.base_model
    allocator = vars(tuner.rankallocator)
    weights = dict(tuner.model.named_parameters())
    for score in SCORES:
        allocator[score] = {
            key: value.to(weights[key].device, copy=True)
            for key, value in ((name.removeprefix(f"{score}:"), value) for name, value in tensors.items())
            if key in weights and f"{score}:{key}" in tensors
        }
    pattern = {name.removeprefix("kept:"): mask.tolist() for name, mask in tensors.items() if name.startswith("kept:")}
    allocator["kept"] = pattern or None
    _freeze_first_ranks(model)
