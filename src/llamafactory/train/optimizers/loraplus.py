"""LoRA+: the second matrix of an adapter learns faster than the first (arXiv 2402.12354), with any `optim`."""

from typing import Any

from torch.optim import Optimizer

from .recipe import Recipe, Weight, groups_of


def make_loraplus(recipe: Recipe) -> Optimizer:
    """Make the optimizer that `optim` names, with a learning rate for each role of a weight."""
    args, lr = recipe.finetuning, recipe.hf.learning_rate
    rates = {"first": lr, "second": lr * (args.loraplus_lr_ratio or 1.0), "embedding": args.loraplus_lr_embedding}
    groups: list[dict[str, Any]] = []
    for role, rate in rates.items():
        groups += groups_of([weight for weight in recipe.weights if role_of(weight) == role], rate)
    return recipe.plain_of(groups)


def role_of(weight: Weight) -> str:
    """Tell the two matrices of an adapter apart; weights that are trained whole count as a first one."""
    if ".lora_embedding_" in weight.name:
        return "embedding"
    return "second" if ".lora_B." in weight.name or weight.tensor.dim() == 1 else "first"
