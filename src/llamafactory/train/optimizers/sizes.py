"""What an optimizer will keep, and how many gradients exist at once, told before there is one; the model may be empty.

The rows of hparams/optimizers.py that have states of their own name a function here; the values of `optim` are rows of
hparams/optimizer_states.toml.
"""

import math
from collections.abc import Callable, Iterable

from torch import nn

from ...extras.registry import load_attribute
from ...hparams.optimizer_states import state_size
from ...model.memory import OptimizerBytes
from .adam_mini import count_blocks
from .badam import split_blocks
from .eight_bits import BITS
from .grid import grid_bytes
from .making import chosen_row
from .muon import split_matrices
from .projection import side_of
from .q_galore import DIRECTION_BITS
from .recipe import Recipe, Weight, matrices


FLOAT32 = 4
INT64 = 8


Measure = Callable[[Recipe], OptimizerBytes]


def optimizer_sizes(recipe: Recipe, *, on_device: bool) -> OptimizerBytes:
    """Return the sizes of the optimizer that the run will make."""
    row = chosen_row(recipe.finetuning)
    if row is None or not row.measure:
        sizes = plain_sizes(recipe, recipe.weights)
        copies = state_size(optim_of(recipe)).copies if on_device else 0.0
        sizes = sizes._replace(update=int(copies * bytes_of(recipe.weights)))
    else:
        measure: Measure = load_attribute(row.measure)
        sizes = measure(recipe)
    if row is not None and row.layerwise is not None and getattr(recipe.finetuning, row.layerwise):
        largest = max((bytes_of([weight]) for weight in recipe.weights), default=0)
        return sizes._replace(gradients=largest)
    return sizes


def plain_sizes(recipe: Recipe, weights: Iterable[Weight]) -> OptimizerBytes:
    """Return those of the optimizer that `optim` names, on some weights."""
    size, chosen = state_size(optim_of(recipe)), list(weights)
    embeddings = {id(module.weight) for module in recipe.model.modules() if isinstance(module, nn.Embedding)}
    states = sum(
        size.of(tuple(weight.tensor.shape), weight.tensor.element_size(), is_embedding=id(weight.tensor) in embeddings)
        for weight in chosen
    )
    return OptimizerBytes(states, bytes_of(chosen), 0)


def galore_sizes(recipe: Recipe) -> OptimizerBytes:
    """The directions, a stand-in of each matrix in the small space, and what the inner optimizer keeps for it.

    Q-GaLore has the directions, and the matrices themselves, on grids of few bits.
    """
    args, size = recipe.finetuning, state_size(optim_of(recipe))
    projected, others = matrices(recipe, args.galore_target, "galore_target", args.galore_rank)
    states = plain_sizes(recipe, others).states
    for weight in projected:
        height, width = weight.tensor.shape
        rank, kind = args.galore_rank, args.galore_proj_type
        if kind == "full":
            small, directions = (rank, rank), rank * (height + width)
        elif side_of(weight.tensor.shape, kind) == "left":
            small, directions = (rank, width), rank * height
        else:
            small, directions = (height, rank), rank * width
        kept = grid_bytes(directions, DIRECTION_BITS) if args.galore_quantize else FLOAT32 * directions
        states += kept + FLOAT32 * math.prod(small) + size.of(small, FLOAT32)
    saved = 0
    if args.galore_quantize:
        saved = bytes_of(projected) - sum(grid_bytes(weight.tensor.numel(), BITS) for weight in projected)
    return OptimizerBytes(states, bytes_of(recipe.weights), largest_in_float32(projected), saved)


def apollo_sizes(recipe: Recipe) -> OptimizerBytes:
    """The directions and two averages in the small space."""
    args = recipe.finetuning
    projected, others = matrices(recipe, args.apollo_target, "apollo_target", args.apollo_rank)
    states = plain_sizes(recipe, others).states
    for weight in projected:
        height, width = weight.tensor.shape
        if side_of(weight.tensor.shape, args.apollo_proj_type) == "right":
            height, width = width, height
        states += FLOAT32 * args.apollo_rank * (height + 2 * width)
    return OptimizerBytes(states, bytes_of(recipe.weights), 2 * largest_in_float32(projected))


def badam_sizes(recipe: Recipe) -> OptimizerBytes:
    """Two averages of the block in turn, or of the chosen share of every weight, in float32."""
    args = recipe.finetuning
    if args.badam_mode == "ratio":
        chosen = sum(max(int(weight.tensor.numel() * args.badam_update_ratio), 1) for weight in recipe.weights)
        return OptimizerBytes((2 * FLOAT32 + INT64) * chosen, bytes_of(recipe.weights), 0)
    blocks, always = split_blocks(recipe)
    in_turn = max(bytes_of(block) for block in blocks) + bytes_of(always)
    return OptimizerBytes(2 * in_turn, in_turn, 0)


def adam_mini_sizes(recipe: Recipe) -> OptimizerBytes:
    """One average for every weight, and one number for each block."""
    states = 0
    for name, tensor, _ in recipe.weights:
        second = (
            FLOAT32 * count_blocks(name, tensor, recipe.model)
            if tensor.dim() > 1
            else tensor.numel() * tensor.element_size()
        )
        states += tensor.numel() * tensor.element_size() + second
    return OptimizerBytes(states, bytes_of(recipe.weights), largest_in_float32(recipe.weights))


def muon_sizes(recipe: Recipe) -> OptimizerBytes:
    """One momentum for matrices inside the model, AdamW's states for the rest."""
    inside, others = split_matrices(recipe)
    states = bytes_of(inside) + plain_sizes(recipe, others).states
    return OptimizerBytes(states, bytes_of(recipe.weights), largest_in_float32(inside))


def bytes_of(weights: Iterable[Weight]) -> int:
    """Return the bytes of weights in their own formats."""
    return sum(weight.tensor.numel() * weight.tensor.element_size() for weight in weights)


def largest_in_float32(weights: Iterable[Weight]) -> int:
    """Return the bytes of the largest one in float32."""
    return FLOAT32 * max((weight.tensor.numel() for weight in weights), default=0)


def optim_of(recipe: Recipe) -> str:
    """Return what `optim` says."""
    name = recipe.hf.optim
    return str(getattr(name, "value", name))
