"""Muon: momentum whose directions all get the same length, for matrices inside the model; AdamW for everything else.

The update is torch's own. Its size is fitted to AdamW's (0.2 sqrt(max(M, N)), arXiv 2502.16982), so a learning rate
that suits AdamW suits it too.
"""

from torch import nn
from torch.optim import Muon, Optimizer

from ...extras.logging import get_logger
from .joint import Joint
from .recipe import Recipe, Weight, groups_of


logger = get_logger(__name__)

MOMENTUM = 0.95


def make_muon(recipe: Recipe) -> Optimizer:
    """Make Muon for matrices and AdamW for embeddings, the output layer, vectors, and experts kept in one tensor."""
    inside, others = split_matrices(recipe)
    logger.info("Muon updates %s matrices, AdamW %s other weights.", len(inside), len(others))
    parts: list[Optimizer] = []
    if inside:
        groups = groups_of(inside, recipe.hf.learning_rate)
        parts.append(Muon(groups, lr=recipe.hf.learning_rate, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"))
    if others:
        parts.append(recipe.plain(others))
    return Joint(parts)


def split_matrices(recipe: Recipe) -> tuple[list[Weight], list[Weight]]:
    """Return the matrices inside the model, and all other weights."""
    ends = {id(module.weight) for module in recipe.model.modules() if isinstance(module, nn.Embedding)}
    model: nn.Module = recipe.model
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # pyright: ignore
    if head is not None:
        ends.add(id(head.weight))
    inside, others = list[Weight](), list[Weight]()
    for weight in recipe.weights:
        tensor = weight.tensor
        is_inside = tensor.dim() == 2 and id(tensor) not in ends and min(tensor.shape) > 1
        (inside if is_inside else others).append(weight)
    return inside, others
