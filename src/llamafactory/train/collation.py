"""How a run makes batches of its rows: padded, packed, or laid end to end without padding.

Laid end to end is best, wherever a kernel takes the bounds of documents and the model keeps them apart; that is asked
once, before the collators are made, for training and evaluation alike. `padding_free: null` leaves the choice to this
file: a model that cannot be trusted with it is trained padded, and one line says so.
"""

from typing import TYPE_CHECKING, Any

import torch

from ..data.collator import FlatCollator, PackedCollator, PaddingCollator
from ..data.shared_prefix import SharedPrefixCollator
from ..extras.device import device_facts
from ..extras.errors import UserError
from ..extras.logging import get_logger
from ..model.depths import has_depths
from ..model.model_utils.attention import (
    attention_in_use,
    shares_prefixes,
    takes_bounds,
    use_flat_attention,
    use_shifted_attention,
)
from ..model.model_utils.isolation import ADVICE, accepts_bounds, find_leak, gets_bounds
from ..model.model_utils.wrapping import unwrapped
from .layout import PADDED, Layout


if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import nn

    from .stage import RunArguments, StageContext

logger = get_logger(__name__)


def choose_layout(
    model: "nn.Module", arguments: "RunArguments", hf_arguments: Any, *, kind: str, joins_rows: bool = True
) -> Layout:
    """Choose the attention kernel and how batches are made; `kind` is the kind of rows, as get_dataset was told.

    An explicit `padding_free: true` or `packing: true` is kept to or refused, never dropped.
    """
    data = arguments.data
    packs = bool(data.packing) and kind == "sft"
    must = packs or bool(data.padding_free)
    if arguments.model.use_unsloth:
        return PADDED
    if has_depths(unwrapped(model)):
        if must:
            raise UserError(f"A mixture of depths chooses among the tokens of a whole row; {ADVICE}.")
        return PADDED
    if arguments.model.shift_attn:
        use_shifted_attention(model, arguments.model.flash_attn, data.cutoff_len)
    else:
        use_flat_attention(model, arguments.model.flash_attn)
    if data.padding_free and not joins_rows:
        raise UserError("padding_free: true is not known to this stage, which pads its batches; remove it.")
    has_bounds = takes_bounds(model)
    if not must and (data.padding_free is False or not joins_rows):
        return PADDED
    can_ask = is_whole(model, hf_arguments)
    leak = ask(model, hf_arguments) if can_ask else None
    if leak is not None and must:
        raise UserError(f"{leak}; {ADVICE}.")
    if not must and (leak is not None or not has_bounds):
        reason = leak or f"the attention {attention_in_use(model)} would mask rows laid end to end"
        logger.info("Batches are padded: %s.", reason)
        return PADDED
    if packs and not has_bounds and not data.padding_free:
        return Layout("packed", is_asked=can_ask)
    return Layout("flat", with_bounds=gets_bounds(model), is_asked=can_ask)


def settle_helpers(
    helpers: "Mapping[str, nn.Module]", layout: Layout, arguments: "RunArguments", hf_arguments: Any
) -> None:
    """Give helper models the same attention, and refuse one that cannot read the batches of the policy."""
    for name, helper in helpers.items():
        use_flat_attention(helper, arguments.model.flash_attn)
        if layout.kind == "padded" or not is_whole(helper, hf_arguments):
            continue
        leak = ask(helper, hf_arguments)
        if leak is None and layout.with_bounds and not accepts_bounds(helper):
            leak = f"{type(helper).__name__} takes no bounds of documents"
        if leak is not None:
            raise UserError(f"The {name} model does not fit this run: {leak}; {ADVICE}.")


def is_whole(model: "nn.Module", hf_arguments: Any) -> bool:
    """Whether the model can be called before it is wrapped: sharding leaves parts of it elsewhere."""
    is_sharded = bool(hf_arguments.fsdp) or hf_arguments.deepspeed is not None
    return not is_sharded and not any(weight.is_meta for weight in model.parameters())


def ask(model: "nn.Module", hf_arguments: Any) -> str | None:
    """Ask the model on its device, under the precision it computes in; None says that documents may share a row."""
    device = torch.device(hf_arguments.device)
    weight = next(model.parameters())
    if weight.device.type == "cpu" and device.type != "cpu":
        model.to(device)  # the Trainer is about to do the same
    dtype = torch.bfloat16 if hf_arguments.bf16 else torch.float16
    with torch.autocast(device.type, dtype=dtype, enabled=hf_arguments.bf16 or hf_arguments.fp16):
        return find_leak(model)


def row_collator(context: "StageContext") -> "FlatCollator | PackedCollator | PaddingCollator":
    """Make what turns rows of `input_ids` and `labels` into a batch; every stage builds on it.

    On accelerators lengths become a multiple of 8, which their matrix units like.
    """
    multiple = None if device_facts().kind == "cpu" else 8
    if context.layout.kind == "flat":
        return FlatCollator(context.tokenizer, multiple, with_bounds=context.layout.with_bounds)
    if context.layout.kind == "packed":
        return PackedCollator(context.tokenizer, multiple)
    return PaddingCollator(context.tokenizer, pad_to_multiple_of=multiple)


def pair_collator(
    context: "StageContext", helpers: "Iterable[nn.Module]" = ()
) -> "SharedPrefixCollator | FlatCollator | PackedCollator | PaddingCollator":
    """Make what turns N dialogues and N others with the same prompts into a batch, each prompt in it once if possible.

    All models that read the batch must be able to: `helpers` are those beside the policy. A stage that looks for
    dialogues by their lengths (row_places.py) cannot use it; `documents_of` numbers them right.
    """
    collate = row_collator(context)
    if context.layout.with_bounds and all(map(shares_prefixes, (context.model, *helpers))):
        return SharedPrefixCollator(context.tokenizer, collate.pad_to_multiple_of)
    return collate
