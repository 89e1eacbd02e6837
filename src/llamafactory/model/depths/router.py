"""What decides which tokens go through a layer. Shapes: B rows, T tokens, D hidden, K tokens that are computed."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, rms_norm, silu


SPREAD = 0.1
"""Spread of a fresh router's numbers around 1: it tells tokens apart, and a trained layer still adds what it added."""
GUESS_WIDTH = 32
"""Hidden units of the network that foretells the router's choice."""


class Choice(NamedTuple):
    """The tokens that a layer computes."""

    tokens_BK: Tensor
    """Their places in reading order; the last place of a row fills what is left."""
    is_real_BK: Tensor
    """False on fillers."""


class DepthRouter(nn.Module):
    """The router of one layer and the network that foretells it; bare parameters, so that no adapter takes them."""

    def __init__(self, width: int, capacity: float, seed: int) -> None:
        super().__init__()
        self.capacity = capacity
        draw = torch.Generator().manual_seed(seed)
        self.score = nn.Parameter(SPREAD / math.sqrt(width) * torch.randn(width, generator=draw))
        self.guess_in = nn.Parameter(torch.randn(GUESS_WIDTH, width, generator=draw) / math.sqrt(width))
        self.guess_out = nn.Parameter(torch.randn(GUESS_WIDTH, generator=draw) / math.sqrt(GUESS_WIDTH))
        self.guess_bias = nn.Parameter(torch.zeros(1))
        self.heard: list[tuple[Tensor, Tensor, Tensor]] = []
        """Guesses, choices and which tokens are real, of the forward passes since the last `take`."""

    def forward(self, hidden_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the number of each token, and how sure the network is that it is chosen (above 0: yes), [B, T].

        Hidden states grow from layer to layer, so their direction is judged and not their length. All in float32: a
        choice is no matter of rounding.
        """
        with torch.autocast(hidden_BTD.device.type, enabled=False):
            seen_BTD = rms_norm(hidden_BTD.float(), hidden_BTD.shape[-1:])
            numbers_BT = 1.0 + seen_BTD @ self.score.float()
            inner = silu(seen_BTD.detach() @ self.guess_in.float().T)
            return numbers_BT, inner @ self.guess_out.float() + self.guess_bias.float()

    def choose(self, numbers_BT: Tensor, guesses_BT: Tensor, is_token_BT: Tensor) -> Choice:
        """Choose by the numbers of the whole text while training, by each token's own guess otherwise.

        The share is that of the real tokens of a row, so that padding and the rows beside it change nothing.
        """
        if not self.training:
            chosen_BT = (guesses_BT > 0) & is_token_BT
            return places_of(chosen_BT, int(chosen_BT.sum(dim=1).max()))
        length = numbers_BT.shape[1]
        sizes_B = (is_token_BT.sum(dim=1) * self.capacity).ceil()
        order_BT = numbers_BT.detach().masked_fill(~is_token_BT, -torch.inf).argsort(dim=1, descending=True)
        ranks_BT = order_BT.argsort(dim=1)
        chosen_BT = (ranks_BT < sizes_B.unsqueeze(1)) & is_token_BT
        if torch.is_grad_enabled():
            self.heard.append((guesses_BT, chosen_BT, is_token_BT))
        return places_of(chosen_BT, math.ceil(length * self.capacity))

    def take(self) -> Tensor | None:
        """Return the mean error of the guesses since the last call; None where nothing was learned from."""
        heard, self.heard = self.heard, []
        if not heard:
            return None
        guesses, chosen, is_token = (
            torch.cat([part.flatten() for part in parts]) for parts in zip(*heard, strict=True)
        )
        errors = binary_cross_entropy_with_logits(guesses, chosen.to(guesses.dtype), reduction="none")
        return (errors * is_token).sum() / is_token.sum().clamp_min(1)


def places_of(chosen_BT: Tensor, num_places: int) -> Choice:
    """Turn a choice into places, as many for each row."""
    length = chosen_BT.shape[1]
    places = torch.arange(length, device=chosen_BT.device).masked_fill(~chosen_BT, length)
    places_BK = places.sort(dim=1).values[:, :num_places]
    return Choice(places_BK.clamp_max(length - 1), places_BK < length)
