"""BAdam: Adam on one block of the model at a time (arXiv 2404.02827, algorithm 1).

Layer mode: the blocks are the decoder layers. Only the block in turn needs gradients and Adam's averages, which start
anew with every block; so the memory is that of a model of one layer, and the backward pass ends at that layer.
Embedding, last norm and output layer stay as they are; a new head (of a reward model, or for values) always learns.

Ratio mode: a random share of every weight learns, another one after each interval; averages exist for that share.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...extras.errors import UserError
from ...extras.logging import get_logger
from .adam import adam_direction, decay_weight
from .recipe import AdamSettings, ExactState, Recipe, Weight, gradient_of, groups_of, seed_of


logger = get_logger(__name__)

NUMBERED = re.compile(r"^(?P<block>.*?\.\d+)\.")
"""A weight of a layer: the first number in a name is the layer's."""


class Turns(NamedTuple):
    """Which block is in turn: a function of the step alone, so nothing but the step has to be saved."""

    num_blocks: int
    interval: int
    mode: str
    start: int
    seed: int

    def block(self, step: int) -> int:
        """Return the block that the update number `step` (from 0) belongs to."""
        turn = 0 if self.interval < 0 else step // self.interval
        if self.mode == "random":
            lap, place = divmod(turn, self.num_blocks)
            generator = torch.Generator().manual_seed(seed_of(self.seed, lap))
            return int(torch.randperm(self.num_blocks, generator=generator)[place])
        moves = {"ascending": turn, "descending": -turn, "fixed": 0}
        return (self.start + moves[self.mode]) % self.num_blocks


class Badam(ExactState):
    """What both modes share: the count of updates, which stands in the first group."""

    def __init__(self, groups: list[dict[str, Any]], turns: Turns, adam: AdamSettings) -> None:
        super().__init__(groups, {})
        self.turns, self.adam = turns, adam
        self.param_groups[0]["num_updates"] = 0

    @property
    def num_updates(self) -> int:
        """Updates made so far."""
        return self.param_groups[0]["num_updates"]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update the weights in turn, and hand over when their time is up."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self.update(weight, group)
        self.param_groups[0]["num_updates"] += 1
        self.settle()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the averages, and whose turn it is."""
        super().load_state_dict(state_dict)
        self.settle()

    def update(self, weight: Tensor, group: dict[str, Any]) -> None:
        """Update one weight that has a gradient."""
        raise RuntimeError("a mode of BAdam has its own update")

    def settle(self) -> None:
        """Bring the model to what the next update needs."""
        raise RuntimeError("a mode of BAdam has its own turns")


class LayerBadam(Badam):
    """One block of layers at a time."""

    def __init__(
        self, groups: list[dict[str, Any]], blocks: list[list[nn.Parameter]], turns: Turns, adam: AdamSettings
    ) -> None:
        super().__init__(groups, turns, adam)
        self.blocks = blocks
        self.describe: Callable[[int, int], None] | None = None
        """Called with the update and the block whenever a block's turn begins."""
        self._current = -1
        self.settle()

    def update(self, weight: Tensor, group: dict[str, Any]) -> None:
        """Adam on a float32 copy of the weight, where the weight itself is shorter."""
        state, gradient = self.state[weight], gradient_of(weight)
        is_short = weight.dtype != torch.float32 and weight.dtype != torch.float64
        if is_short and "master" not in state:
            state["master"] = weight.detach().float()
        master = state["master"] if is_short else weight
        direction = adam_direction(state, gradient.to(master.dtype), self.adam)
        decay_weight(master, group)
        master.add_(direction, alpha=-group["lr"])
        if is_short:
            weight.copy_(master)

    def settle(self) -> None:
        """Let the block in turn need gradients; the others lose theirs, and their averages."""
        current = self.turns.block(self.num_updates)
        if current != self._current and self.describe is not None:
            self.describe(self.num_updates, current)
        self._current = current
        for number, block in enumerate(self.blocks):
            for weight in block:
                weight.requires_grad_(number == current)
                if number != current:
                    weight.grad = None
                    self.state.pop(weight, None)


class RatioBadam(Badam):
    """A share of the numbers of every weight at a time."""

    def __init__(
        self, groups: list[dict[str, Any]], ratio: float, is_adjacent: bool, turns: Turns, adam: AdamSettings
    ) -> None:
        super().__init__(groups, turns, adam)
        self.ratio, self.is_adjacent = ratio, is_adjacent
        self._chosen: dict[Tensor, Tensor] = {}
        self._lap = -1
        self.settle()

    def update(self, weight: Tensor, group: dict[str, Any]) -> None:
        """Adam on the chosen numbers."""
        gradient = gradient_of(weight)
        chosen_K = self._chosen[weight]
        part_K = weight.flatten()[chosen_K].float()
        direction_K = adam_direction(self.state[weight], gradient.flatten()[chosen_K].float(), self.adam)
        decay_weight(part_K, group)
        part_K.add_(direction_K, alpha=-group["lr"])
        weight.view(-1)[chosen_K] = part_K.to(weight.dtype)

    def settle(self) -> None:
        """Choose other numbers when an interval is over; their averages start anew."""
        lap = 0 if self.turns.interval < 0 else self.num_updates // self.turns.interval
        if lap == self._lap:
            return
        is_first, self._lap = self._lap < 0, lap
        number = 0
        for group in self.param_groups:
            for weight in group["params"]:
                number += 1
                self._chosen[weight] = self._choose(weight, seed_of(self.turns.seed, lap, number))
                if not is_first and self.num_updates % self.turns.interval == 0:
                    self.state.pop(weight, None)

    def _choose(self, weight: Tensor, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        total = weight.numel()
        count = max(int(total * self.ratio), 1)
        if self.is_adjacent:
            start = int(torch.randint(total - count + 1, (), generator=generator))
            return torch.arange(start, start + count, device=weight.device)
        drawn = torch.randint(total, (count,), generator=generator) if total > 2**24 else None
        picked = torch.randperm(total, generator=generator)[:count] if drawn is None else drawn.unique()
        return picked.sort().values.to(weight.device)


def make_badam(recipe: Recipe) -> Optimizer:
    """Make BAdam in the mode that `badam_mode` names."""
    args, hf = recipe.finetuning, recipe.hf
    interval = args.badam_switch_interval or -1
    if args.badam_mode == "ratio":
        turns = Turns(1, interval, "fixed", 0, hf.seed)
        groups = groups_of(recipe.weights, hf.learning_rate)
        is_adjacent = args.badam_mask_mode == "adjacent"
        return RatioBadam(groups, args.badam_update_ratio, is_adjacent, turns, recipe.adam())
    blocks, always = split_blocks(recipe)
    mode = args.badam_switch_mode or "fixed"
    start = args.badam_start_block
    if start is not None and start >= len(blocks):
        raise UserError(f"badam_start_block is {start}, but the model has {len(blocks)} blocks, counted from 0.")
    first = start if start is not None else (len(blocks) - 1 if mode == "descending" else 0)
    turns = Turns(len(blocks), interval, mode, first, hf.seed)
    learning = [weight for block in blocks for weight in block] + always
    logger.info("BAdam trains %s blocks in turn, %s steps each.", len(blocks), interval if interval > 0 else "all")
    tensors = [[weight.tensor for weight in block] for block in blocks]
    optimizer = LayerBadam(groups_of(learning, hf.learning_rate), tensors, turns, recipe.adam())
    if args.badam_verbose:
        optimizer.describe = announcer(blocks, with_weights=args.badam_verbose > 1)
    return optimizer


def announcer(blocks: list[list[Weight]], *, with_weights: bool) -> Callable[[int, int], None]:
    """Make what says whose turn it is."""

    def announce(step: int, block: int) -> None:
        match = NUMBERED.match(blocks[block][0].name)
        name = match["block"] if match else str(block)
        logger.info("BAdam: from update %s on, %s learns.", step + 1, name)
        if with_weights:
            logger.info("Its weights: %s.", ", ".join(weight.name for weight in blocks[block]))

    return announce


def split_blocks(recipe: Recipe) -> tuple[list[list[Weight]], list[Weight]]:
    """Return the weights of each layer, and those that always learn; the ends of the model stop learning."""
    inner: Any = recipe.model
    ends = [inner.get_input_embeddings(), inner.get_output_embeddings()]
    blocks: dict[str, list[Weight]] = {}
    always: list[Weight] = []
    frozen = {id(tensor) for end in ends if end is not None for tensor in end.parameters()}
    for weight in recipe.weights:
        match = NUMBERED.match(weight.name)
        if match is not None:
            blocks.setdefault(match["block"], []).append(weight)
        elif id(weight.tensor) in frozen or weight.name.endswith("norm.weight"):
            weight.tensor.requires_grad_(False)
        else:
            always.append(weight)
    if not blocks:
        raise UserError("use_badam: no layer of this model is trained; BAdam has no blocks to go through.")
    return list(blocks.values()), always
