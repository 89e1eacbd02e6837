"""Arguments of the optimizers that transformers does not bring; optimizers.py is their table."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Interval

from .kinds import Arguments, Count, Names, Natural, PartShare, Positive


@dataclass(frozen=True, kw_only=True)
class GaloreArguments(Arguments):
    """GaLore: gradients projected to a low rank."""

    use_galore: bool = False
    """Keeps the optimizer state in a low-rank space, so that full tuning needs far less memory."""
    galore_target: Names = ("all",)
    """Modules that are projected; `all` is every linear layer."""
    galore_rank: Count = 16
    """Size of the projected space; more is closer to ordinary Adam."""
    galore_update_interval: Count = 200
    """Steps between fresh projections."""
    galore_scale: Positive = 2.0
    """Factor on the projected update."""
    galore_proj_type: Literal["std", "reverse_std", "right", "left", "full"] = "std"
    """Side of the matrix that is projected."""
    galore_layerwise: bool = False
    """Updates each weight during the backward pass: least memory, one device, no accumulation, no clipping."""
    galore_quantize: bool = False
    """Keeps the projected weights in 8 bits and the projections in 4 (Q-GaLore); one device."""
    galore_cos_threshold: PartShare = 0.4
    """How alike the directions of a layer must stay for `galore_quantize` to look for them half as often."""
    galore_queue_size: Count = 5
    """How often in a row they must be that alike."""


@dataclass(frozen=True, kw_only=True)
class ApolloArguments(Arguments):
    """APOLLO: Adam's scaling estimated at a low rank."""

    use_apollo: bool = False
    """Estimates Adam's scaling in a small space: nearly the memory of SGD."""
    apollo_target: Names = ("all",)
    """Modules that are treated so; `all` is every linear layer."""
    apollo_rank: Count = 16
    """Size of the small space."""
    apollo_update_interval: Count = 200
    """Steps between fresh projections."""
    apollo_scale: Positive = 32.0
    """Square of the factor on the update, as the paper counts it: 128 for a rank of 1."""
    apollo_proj: Literal["svd", "random"] = "random"
    """Where the projection comes from; random is cheaper."""
    apollo_proj_type: Literal["std", "right", "left"] = "std"
    """Side of the matrix that is projected."""
    apollo_scale_type: Literal["channel", "tensor"] = "channel"
    """One scale per channel, or one per matrix."""
    apollo_layerwise: bool = False
    """Updates each weight during the backward pass: least memory, one device, no accumulation, no clipping."""
    apollo_scale_front: bool = False
    """Limits the growth of the update before scaling instead of after."""


@dataclass(frozen=True, kw_only=True)
class BadamArguments(Arguments):
    """BAdam: one block at a time."""

    use_badam: bool = False
    """Trains one block of layers at a time, so only its optimizer state is held."""
    badam_mode: Literal["layer", "ratio"] = "layer"
    """Blocks of layers, or a random share of all weights."""
    badam_start_block: Natural | None = None
    """Block to begin with."""
    badam_switch_mode: Literal["ascending", "descending", "random", "fixed"] | None = "ascending"
    """Order of the blocks."""
    badam_switch_interval: Annotated[int, Ge(-1)] | None = 50
    """Steps spent on a block; -1 stays on it."""
    badam_update_ratio: Annotated[float, Interval(gt=0, le=1)] = 0.05
    """Share of the weights that is updated in ratio mode."""
    badam_mask_mode: Literal["adjacent", "scatter"] = "adjacent"
    """Whether the updated weights of ratio mode lie together or apart."""
    badam_verbose: Literal[0, 1, 2] = 0
    """Says whose turn it is whenever that changes; 2 names the weights too."""
