"""NEFTune: noise on the embeddings while the policy trains (Jain et al. 2023, arXiv:2310.05914).

The noise of a token is drawn from [-m, m] with m = alpha / sqrt(L d), where L is the length of its own document
without padding and d the width of the embedding (algorithm 1). transformers' own hook takes the width of the batch for
L: too little noise for short rows in a padded batch, and far too little where documents are laid end to end.
Evaluation, references and surveys run in evaluation mode, where there is none. Shapes: B rows, T tokens, D width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback


class EmbeddingNoise(TrainerCallback):
    """Hooks on the instance in training, from the first step to the last."""

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        self._hooks: list[Any] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._hooks = add_noise(model, self._alpha)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def noise_callbacks(alpha: float | None) -> list[TrainerCallback]:
    """Return the callback that `neftune_noise_alpha` asks for."""
    return [EmbeddingNoise(alpha)] if alpha else []


def add_noise(model: Any, alpha: float) -> list[Any]:
    """Put noise on the embeddings of a model that is called with keyword arguments; return the hooks."""
    lengths: dict[str, Tensor] = {}

    def measure(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module.training:
            lengths["BT"] = document_lengths(kwargs)

    def disturb(module: nn.Module, args: tuple[Any, ...], embedded_BTD: Tensor) -> Tensor:
        lengths_BT = lengths.pop("BT", None)
        if lengths_BT is None:
            return embedded_BTD
        noise_BTD = torch.empty_like(embedded_BTD).uniform_(-1, 1)
        sizes_BT1 = alpha / (lengths_BT * embedded_BTD.shape[-1]).sqrt().unsqueeze(-1)
        return embedded_BTD + noise_BTD * sizes_BT1.to(embedded_BTD.dtype)

    return [
        model.register_forward_pre_hook(measure, with_kwargs=True),
        model.get_input_embeddings().register_forward_hook(disturb),
    ]


def document_lengths(inputs: Mapping[str, Any]) -> Tensor:
    """Return for each token the length of its document [B, T], from what a model is given (data/batch.py).

    A prompt that two answers share counts as part of the first one.
    """
    ids_BT: Tensor = inputs["input_ids"]
    bounds, places = inputs.get("cu_seq_lens_q"), inputs.get("shared_places")
    positions, mask = inputs.get("position_ids"), inputs.get("attention_mask")
    if bounds is not None:
        own = torch.arange(ids_BT.numel(), device=ids_BT.device) if places is None else places
        numbers = torch.searchsorted(bounds, own.to(bounds.dtype), right=True) - 1
        return bounds.diff()[numbers].view_as(ids_BT)
    if positions is not None:
        positions = positions[0] if positions.dim() == 3 else positions  # of text, and of two directions in images
        numbers = (positions.reshape(-1) == 0).cumsum(dim=0)
        return torch.bincount(numbers)[numbers].view_as(ids_BT)
    if mask is not None and mask.dim() == 2:
        return mask.sum(dim=1, keepdim=True).expand_as(ids_BT)
    return torch.full_like(ids_BT, ids_BT.shape[1])
