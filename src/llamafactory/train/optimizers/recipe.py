"""What an optimizer is made from: the weights that learn, and the settings of the run."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import Trainer

from ...extras.errors import UserError
from ...extras.packages import require
from ...extras.registry import did_you_mean
from ...model.modules import is_regex, leaf_names, output_layer_name


if TYPE_CHECKING:
    from transformers import TrainingArguments

    from ...hparams import FinetuningArguments


class Weight(NamedTuple):
    """A weight that learns."""

    name: str
    tensor: nn.Parameter
    decay: float
    """Its weight decay: 0 for biases and norms."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One optimizer to be made."""

    model: nn.Module
    weights: tuple[Weight, ...]
    hf: "TrainingArguments"
    finetuning: "FinetuningArguments"

    def plain(self, weights: Iterable[Weight]) -> Optimizer:
        """Make the optimizer that `optim` names, for these weights."""
        return self.plain_of(groups_of(weights, self.hf.learning_rate))

    def plain_of(self, groups: list[dict[str, Any]]) -> Optimizer:
        """Make the optimizer that `optim` names, for groups of weights."""
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(self.hf, self.model)  # pyright: ignore[reportArgumentType]
        if settings.get("optim_bits") == 8:
            keep_embeddings_whole(self.model)
        return kind(groups, **settings)

    def adam(self) -> "AdamSettings":
        """Return Adam's settings."""
        return AdamSettings((self.hf.adam_beta1, self.hf.adam_beta2), self.hf.adam_epsilon)


class AdamSettings(NamedTuple):
    """Memory of Adam's two averages, and what keeps its quotient finite."""

    betas: tuple[float, float]
    eps: float


def weights_of(model: nn.Module, decay: float, decayed: Collection[str]) -> tuple[Weight, ...]:
    """Return the weights that learn; those not in `decayed` have no weight decay."""
    return tuple(
        Weight(name, tensor, decay if name in decayed else 0.0)
        for name, tensor in model.named_parameters()
        if tensor.requires_grad
    )


def groups_of(weights: Iterable[Weight], lr: float) -> list[dict[str, Any]]:
    """Return torch's parameter groups, one for each weight decay."""
    groups: dict[float, list[nn.Parameter]] = {}
    for weight in weights:
        groups.setdefault(weight.decay, []).append(weight.tensor)
    return [{"params": tensors, "weight_decay": decay, "lr": lr} for decay, tensors in groups.items()]


def matrices(recipe: Recipe, targets: Collection[str], key: str, rank: int) -> tuple[list[Weight], list[Weight]]:
    """Split the weights: matrices of linear layers that a projection to `rank` makes smaller, and all others.

    `targets` are names of modules, or `all`: every linear layer except the output.
    """
    chosen = hidden_linears(recipe.model) if tuple(targets) == ("all",) else named_linears(recipe.model, targets, key)
    projected, others = list[Weight](), list[Weight]()
    for weight in recipe.weights:
        is_chosen = weight.name.removesuffix(".weight") in chosen and min(weight.tensor.shape) > rank
        (projected if is_chosen else others).append(weight)
    return projected, others


def hidden_linears(model: nn.Module) -> set[str]:
    """Return the names of all linear layers except the one that makes the logits."""
    head = output_layer_name(model)  # pyright: ignore[reportArgumentType]
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear)} - {head}


def named_linears(model: nn.Module, targets: Iterable[str], key: str) -> set[str]:
    """Return the linear layers that are meant by the end of their name, or by a regular expression."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    chosen: set[str] = set()
    for target in targets:
        pattern = re.compile(target if is_regex(target) else rf"(.*\.)?{re.escape(target)}")
        hits = {name for name in names if pattern.fullmatch(name)}
        if not hits:
            leaves = leaf_names(names)
            hint = f"{did_you_mean(target, leaves)} There are: {', '.join(leaves)}."
            raise UserError(f"{key} {target!r} matches no linear layer of this model.{hint}")
        chosen |= hits
    return chosen


def keep_embeddings_whole(model: nn.Module) -> None:
    """Let bitsandbytes keep 32-bit states for embeddings, whose rare rows 8 bits serve badly."""
    manager = require("bitsandbytes", "bnb", "An 8-bit optimizer").optim.GlobalOptimManager.get_instance()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})


def gradient_of(weight: Tensor) -> Tensor:
    """Return the gradient of a weight that has one."""
    if weight.grad is None:
        raise RuntimeError("a weight without a gradient is not updated")
    return weight.grad


def seed_of(*numbers: int) -> int:
    """Mix whole numbers into a seed; equal in every process and on every machine."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % 2**63
    return seed


class ExactState(Optimizer):
    """An optimizer whose state is restored as it was saved; torch rounds it to the format of the weights."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore groups and states."""
        super().load_state_dict(dict(state_dict))
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for weight, number in zip(group["params"], saved["params"], strict=True):
                if number in state_dict["state"]:
                    self.state[weight] = {
                        key: value.to(weight.device, copy=True) if isinstance(value, Tensor) else value
                        for key, value in state_dict["state"][number].items()
                    }
