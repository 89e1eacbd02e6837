"""Merging in float32: the base with its adapters on, merged, and compared with itself before."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ...extras.errors import UserError
from ...extras.logging import get_logger
from ...model.adapter import load_adapter, merge_adapters
from ...model.adapters.saved import refuse_merge
from ...model.base_changes import read_changes
from ...model.depths import refuse_depths
from ...model.dtype import NAMED_DTYPES, SHORT, stored_dtype
from ...model.loader import check_vocabulary, load_config, load_weights
from ...model.merge import merge_adapter
from ...model.model_utils.rope import stretch_positions
from ...model.model_utils.valuehead import exported_head, head_of, take_score
from ...model.quantization import plain_quantizer
from ...model.sources import resolve_adapter
from ...model.vocabulary import grow_vocabulary
from .parent import check_base, trace_parent
from .probe import EXACT_TOLERANCE, Probe, require_equal


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ...hparams import ModelArguments


logger = get_logger(__name__)


@dataclass(frozen=True)
class Merge:
    """A merged model in memory, in float32, and what it answers."""

    model: "PreTrainedModel"
    logits: list[torch.Tensor]
    dtype: torch.dtype
    """The format to write: the one asked for, or with `auto` the one the base is stored in."""
    gap: float | None
    """How far it is from the model with its adapter on; None without an adapter."""


def merge_model(
    tokenizer: "PreTrainedTokenizerBase", probe: Probe, model_args: "ModelArguments", *, is_reward: bool = False
) -> Merge:
    """Load the base in float32, take the logits with the adapter on, merge, and compare.

    With `is_reward` the score of a value head file goes with the model.
    """
    folders = [resolve_adapter(name, model_args) for name in model_args.adapter_name_or_path or ()]
    refuse_merge(folders)
    model_args = trace_parent(model_args, folders)
    check_base(model_args.model_name_or_path, folders)
    config = load_config(model_args)
    refuse_depths(config, "exported: only this package knows its routers, and the folder of its run is whole already")
    stretch_positions(config, model_args)
    head = exported_head(head_of(config, folders), model_args, is_reward=is_reward)
    dtype = stored_dtype(config) if model_args.infer_dtype == "auto" else NAMED_DTYPES[model_args.infer_dtype]
    plain = plain_quantizer(config, model_args.model_name_or_path)
    model = load_weights(
        config,
        model_args,
        torch.float32,
        placed=model_args.export_device == "auto",
        head=head,
        quantizer=plain,
    ).eval()
    if head == "score":
        model = take_score(model, model_args)
    grow_vocabulary(model, tokenizer, model_args, read_changes(model_args).num_rows)
    check_vocabulary(tokenizer, model)
    if not folders:
        logger.info("No adapter is named: the model itself is saved again.")
        return Merge(model, probe.logits(model), dtype, None)

    model = merge_adapters(model, folders[:-1], torch.float32)
    adapted: Any = load_adapter(model, folders[-1]).eval()
    expected = probe.logits(adapted)
    merged = merge_adapter(adapted, torch.float32, compare_in=dtype)
    if not merged.num_changed:
        raise UserError(
            f"The adapter {folders[-1]} changes nothing: after merging, every weight is the base's in {SHORT[dtype]}. "
            "It was not trained, or its changes are smaller than that format can hold (then try infer_dtype: float32)."
        )
    logger.info("Merged %s; %s of %s layers changed.", folders[-1], merged.num_changed, merged.num_layers)
    logits = probe.logits(merged.model.eval())
    gap = require_equal(expected, logits, EXACT_TOLERANCE, "the merged model and the model with its adapter")
    return Merge(merged.model, logits, dtype, gap)
