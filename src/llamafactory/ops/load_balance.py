"""How evenly a mixture of experts is used. Shapes: T tokens, E experts."""

from collections.abc import Sequence

import torch
from torch import Tensor


def load_balance(layers_TE: Sequence[Tensor], top_k: int, mask_T: Tensor | None = None) -> Tensor:
    """Return E times the sum over experts of (choices a token) x (mean probability); top_k when all are used alike.

    Takes the logits of the router of each layer. Both means go over the tokens of all layers, as in equations 4 to 6
    of arxiv.org/abs/2101.03961, with `top_k` choices a token as transformers counts them; a token whose mask is 0 is
    padding and counts nowhere. Only the probability carries a gradient.
    """
    num_experts = layers_TE[0].shape[1]
    count = choices_E = sums_E = layers_TE[0].new_zeros(num_experts, dtype=torch.float32)
    for logits_TE in layers_TE:
        weights_T = logits_TE.new_ones(len(logits_TE), dtype=torch.float32) if mask_T is None else mask_T.float()
        probabilities_TE = logits_TE.float().softmax(dim=-1)
        chosen_TK = probabilities_TE.detach().topk(top_k, dim=-1).indices
        choices_E = choices_E.index_add(0, chosen_TK.flatten(), weights_T.repeat_interleave(top_k))
        sums_E = sums_E + weights_T @ probabilities_TE
        count = count + weights_T.sum()
    return num_experts * (choices_E / count * sums_E / count).sum()
