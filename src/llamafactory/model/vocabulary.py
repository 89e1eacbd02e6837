"""New tokens: they enter the tokenizer, get rows in the embedding and the output layer, and can be learned.

The rows of old tokens are never touched. New rows start near the mean of the old ones, or at the mean of the tokens of
their description, in both matrices alike; rows that only round the size up are kept from being written by generation.
An adapter trains the rows of new tokens alone (PEFT's trainable_token_indices), so its file stays small.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor, nn
from transformers import AddedToken, PreTrainedModel

from ..extras.errors import UserError
from ..extras.logging import get_logger
from .base_changes import BaseChanges


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..hparams import ModelArguments

logger = get_logger(__name__)

MULTIPLE = 64
"""The number of rows is a multiple of this, which matrix units like."""
NOISE = 0.1
"""Spread of new rows around their start, as a share of the spread of the old ones: enough to tell them apart."""
SEED = 0
"""Rows are drawn again by a resumed run, so they must not depend on what was drawn before."""
NEW_TOKENS = "new_tokens"
"""Where a tokenizer keeps the tokens that this run added to it: ordinary ones, and control tokens."""


def add_tokens(tokenizer: "PreTrainedTokenizerBase", model_args: "ModelArguments", noted: BaseChanges) -> None:
    """Add the tokens of the adapter's note, then those that the arguments name; known ones are left alone."""
    _add(tokenizer, noted.ordinary_tokens, noted.special_tokens)
    special = tuple(read_descriptions(model_args) or model_args.add_special_tokens or ())
    ordinary = tuple(model_args.add_tokens or ())
    if not special and not ordinary:
        return
    added = _add(tokenizer, ordinary, special)
    vars(tokenizer)[NEW_TOKENS] = added
    logger.info("New tokens: %s.", ", ".join([*added[0], *added[1]]) or "none, all are known already")


def noted_tokens(tokenizer: Any, noted: BaseChanges) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return all tokens that an adapter has to note: ordinary ones and control tokens."""
    ordinary, special = vars(tokenizer).get(NEW_TOKENS, ((), ()))
    return (*noted.ordinary_tokens, *ordinary), (*noted.special_tokens, *special)


def _add(
    tokenizer: "PreTrainedTokenizerBase", ordinary: Sequence[str], special: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    known = tokenizer.get_vocab()
    ordinary, special = (tuple(token for token in tokens if token not in known) for tokens in (ordinary, special))
    tokenizer.add_tokens([AddedToken(token, special=False) for token in ordinary])
    if special:
        tokenizer.add_special_tokens({"extra_special_tokens": list(special)}, replace_extra_special_tokens=False)
    return ordinary, special


def read_descriptions(model_args: "ModelArguments") -> dict[str, str] | None:
    """Return the new special tokens with their descriptions; None where no file is named."""
    name = model_args.new_special_tokens_config
    if name is None:
        return None
    try:
        found = yaml.safe_load(Path(name).expanduser().read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"new_special_tokens_config {name!r} cannot be read: {error}.") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for pair in found.items() for value in pair):
        raise UserError(f"new_special_tokens_config {name!r} must hold lines of the form `token: description`.")
    return found


def new_ids_of(tokenizer: Any) -> tuple[int, ...]:
    """Return the ids of the tokens that this run added."""
    ordinary, special = vars(tokenizer).get(NEW_TOKENS, ((), ()))
    return tuple(tokenizer.convert_tokens_to_ids(token) for token in (*ordinary, *special))


def grow_vocabulary(
    model: PreTrainedModel,
    tokenizer: "PreTrainedTokenizerBase",
    model_args: "ModelArguments",
    num_rows: int | None = None,
) -> int | None:
    """Give every token a row and start the new ones; return the number of rows if it changed.

    `num_rows` is the size that an adapter was trained with. Without it, the embedding grows where `resize_vocab` says
    so, or where tokens were added that have no row.
    """
    new_ids, old_rows = new_ids_of(tokenizer), len(_weight(model.get_input_embeddings()))
    wanted = num_rows or old_rows
    if len(tokenizer) > old_rows and (model_args.resize_vocab or new_ids):
        wanted = max(wanted, -(-len(tokenizer) // MULTIPLE) * MULTIPLE)
    if wanted > old_rows:
        is_tied = model.get_output_embeddings() is not None and _are_tied(model)
        model.resize_token_embeddings(wanted, mean_resizing=False)
        if is_tied != _are_tied(model):
            raise UserError("The output layer of this model does not grow with its embedding; remove resize_vocab.")
        logger.info("The vocabulary grew from %s to %s rows.", old_rows, wanted)
    fresh = sorted({*new_ids, *range(old_rows, wanted)})
    if fresh:
        start_rows(model, fresh, len(tokenizer) - len(new_ids), _starts(tokenizer, model_args))
    _silence_padding(model, len(tokenizer), wanted)
    return wanted if wanted > old_rows else None


def start_rows(model: PreTrainedModel, fresh: Sequence[int], num_old: int, starts: Mapping[int, "Start"]) -> None:
    """Set the fresh rows of the embedding, and of an output layer of its own."""
    matrices = {id(weight): weight for weight in _matrices(model)}
    old = [row for row in range(min(num_old, len(next(iter(matrices.values()))))) if row not in set(fresh)]
    generator = torch.Generator().manual_seed(SEED)
    for weight in matrices.values():
        known = weight.data[old].float().cpu()
        mean, spread = known.mean(dim=0), known.std(dim=0)
        rows: list[Tensor] = []
        for row in fresh:
            start = starts.get(row, Start(()))
            centre = weight.data[list(start.like)].float().cpu().mean(dim=0) if start.like else mean
            noise = NOISE * spread * torch.randn(mean.shape, generator=generator)
            rows.append(centre + noise if start.is_noisy else centre)
        weight.data[list(fresh)] = torch.stack(rows).to(weight)


class Start:
    """What a new row starts from: the rows of other tokens, or the mean of all."""

    def __init__(self, like: Sequence[int], is_noisy: bool = True) -> None:
        self.like = tuple(like)
        self.is_noisy = is_noisy


def trained_rows(model: PreTrainedModel, new_ids: Sequence[int]) -> dict[str, list[int]] | None:
    """Return what PEFT calls trainable_token_indices: new rows of the embedding, and of an output layer of its own."""
    if not new_ids:
        return None
    names = {id(module): name for name, module in model.named_modules()}
    head: nn.Module | None = model.get_output_embeddings()
    layers: list[nn.Module] = [model.get_input_embeddings()]
    if head is not None and not _are_tied(model):
        layers.append(head)
    return {names[id(layer)]: list(new_ids) for layer in layers}


def _starts(tokenizer: Any, model_args: "ModelArguments") -> dict[int, Start]:
    """Start the tokens of a description file from the tokens of their descriptions, where that was asked for."""
    descriptions = read_descriptions(model_args)
    if descriptions is None or model_args.init_special_tokens == "noise_init":
        return {}
    new, is_noisy = set(new_ids_of(tokenizer)), model_args.init_special_tokens == "desc_init_w_noise"
    starts: dict[int, Start] = {}
    for token, text in descriptions.items():
        like = [item for item in tokenizer(text, add_special_tokens=False)["input_ids"] if item not in new]
        starts[tokenizer.convert_tokens_to_ids(token)] = Start(like, is_noisy)
    return starts


def _silence_padding(model: PreTrainedModel, num_tokens: int, num_rows: int) -> None:
    """Keep generation from choosing a row that stands for no token."""
    config = getattr(model, "generation_config", None)
    padding = list(range(num_tokens, num_rows))
    if config is not None and 0 < len(padding) < MULTIPLE:
        config.suppress_tokens = sorted({*(config.suppress_tokens or ()), *padding})


def _matrices(model: PreTrainedModel) -> list[Tensor]:
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [_weight(layer) for layer in layers if layer is not None]


def _weight(layer: nn.Module | None) -> Tensor:
    if layer is None:
        raise UserError("This model has no embedding that could grow.")
    return layer.get_parameter("weight")


def _are_tied(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    return head is not None and _weight(head) is _weight(model.get_input_embeddings())
