"""Mixture of depths (arxiv.org/abs/2404.02258): every second layer computes an eighth of the tokens of a text.

A router gives each token a number. While the model learns, the tokens with the largest numbers go through the layer,
and what the layer adds to them is multiplied by their number, so the router learns too; all other tokens pass by. That
choice looks at the whole text. When the model answers, it must not: then a small network decides for each token by
itself. It learns beside the model to foretell the choice, and its error reaches no other weight.

The packages that did this are of the time of transformers 4 and do not import with 5. Here a layer stays what it is,
gets a router as a part, and a forward function on the instance (layers.py). Routers are saved with the weights, and
config.json says which layers have one (changes.py).
"""

from .changes import NOTE, has_depths, refuse_depths, with_depths
from .layers import Depths, depths_of


__all__ = ["NOTE", "Depths", "depths_of", "has_depths", "refuse_depths", "with_depths"]
