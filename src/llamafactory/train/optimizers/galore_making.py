"""Makes GaLore or Q-GaLore out of the arguments of a run."""

import zlib
from dataclasses import replace

from torch.optim import Optimizer

from ...extras.errors import UserError
from .eight_bits import to_eight_bits
from .galore import Galore, GaloreSettings
from .joint import Joint, Layerwise
from .q_galore import LazySettings, QGalore
from .recipe import Recipe, Weight, groups_of, matrices, seed_of


def make_galore(recipe: Recipe) -> Optimizer:
    """Make GaLore around the optimizer that `optim` names."""
    args = recipe.finetuning
    if not matrices(recipe, args.galore_target, "galore_target", args.galore_rank)[0]:
        raise UserError(
            f"use_galore: no trained matrix is larger than galore_rank {args.galore_rank}; lower it, or train more "
            "layers."
        )
    if not args.galore_layerwise:
        return _galore(recipe)
    return Layerwise([_galore(replace(recipe, weights=(weight,))) for weight in recipe.weights])


def _galore(recipe: Recipe) -> Optimizer:
    args = recipe.finetuning
    settings = GaloreSettings(args.galore_rank, args.galore_update_interval, args.galore_scale, args.galore_proj_type)
    projected, others = matrices(recipe, args.galore_target, "galore_target", settings.rank)
    parts: list[Optimizer] = []
    if projected and args.galore_quantize:
        parts.append(_q_galore(recipe, projected, settings))
    elif projected:
        parts.append(Galore(groups_of(projected, recipe.hf.learning_rate), settings, recipe.plain_of))
    if others:
        parts.append(recipe.plain(others))
    return parts[0] if len(parts) == 1 else Joint(parts)


def _q_galore(recipe: Recipe, projected: list[Weight], settings: GaloreSettings) -> Optimizer:
    args = recipe.finetuning
    layers = to_eight_bits(recipe.model, {weight.tensor for weight in projected})
    if len(layers) < len(projected):
        raise UserError("galore_quantize: true cannot keep shared weights in 8 bits; leave them out of galore_target.")
    seed = seed_of(recipe.hf.seed, zlib.crc32(projected[0].name.encode()))
    lazy = LazySettings(args.galore_cos_threshold, args.galore_queue_size, seed)
    groups = groups_of(
        (weight._replace(tensor=layers[weight.tensor].weight) for weight in projected), recipe.hf.learning_rate
    )
    return QGalore(groups, settings, recipe.plain_of, {layer.weight: layer for layer in layers.values()}, lazy)
