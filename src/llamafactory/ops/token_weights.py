"""Factors on the loss of each token that follow from the model's own distribution (`Reweight` of cross_entropy.py).

Shapes: C positions, V vocabulary.
"""

from torch import Tensor


NUM_LIKELIEST = 20
"""Tokens whose entropy stands for the entropy of all."""
MOST_ENTROPY = 3.0
"""Nats that count as full uncertainty: the logarithm of 20, rounded."""


def by_probability(all_CV: Tensor, expected_C: Tensor) -> Tensor:
    """p(target): dynamic fine-tuning (Wu et al. 2025, arXiv:2508.05629, eq. 9)."""
    return expected_C.exp()


def by_entropy(all_CV: Tensor, expected_C: Tensor, *, exponent: float) -> Tensor:
    """(H / 3)^exponent, where H is the entropy in nats of the 20 likeliest tokens: entropy-adaptive fine-tuning.

    Tokens of which the model is sure, and wrong, pull less.
    """
    likeliest_CN = all_CV.topk(min(NUM_LIKELIEST, all_CV.shape[1]), dim=1).values.log_softmax(dim=1)
    entropy_C = likeliest_CN.exp().mul(likeliest_CN).sum(dim=1).neg()
    return entropy_C.div(MOST_ENTROPY).pow(exponent)
