"""The configs of methods on layers that need nothing but a config: OFT, VeRA, LoHa, LoKr, IA3."""

from typing import Any

from peft import IA3Config, LoHaConfig, LoKrConfig, OFTConfig, VeraConfig
from transformers import PreTrainedModel

from ...extras.errors import UserError
from ...extras.logging import get_logger
from ..model_utils.valuehead import score_head_name
from ..request import LoadRequest
from .lora import shared_options
from .targeted import full_names
from .targets import Targets, find_mixtures, find_targets


logger = get_logger(__name__)

KEYS_AND_VALUES = ("k_proj", "v_proj", "key", "value", "query_key_value", "qkv_proj", "c_attn")
FEED_FORWARD = ("down_proj", "fc2", "w2", "dense_4h_to_h", "fc_out", "mlp.c_proj")
"""What IA3 adapts: what the attention reads, and what comes out of the middle of the feed-forward part."""


def oft_config(model: PreTrainedModel, request: LoadRequest) -> OFTConfig:
    """Rotations of the inputs of each layer; `oft_rank` counts the blocks, `oft_block_size` is their size."""
    args = request.finetuning_args
    if args.oft_rank and args.oft_block_size not in (0, 32):
        raise UserError(
            "Give oft_rank or oft_block_size, not both: each follows from the other and the layer's width."
        )
    if not args.oft_rank and not args.oft_block_size:
        raise UserError("oft_rank and oft_block_size are both 0; give one of them.")
    wanted = args.oft_target if args.oft_target != ("all",) else args.lora_target
    targets = _targets(model, request, wanted, "oft_target" if args.oft_target != ("all",) else "lora_target")
    logger.info("OFT on: %s.", targets)
    return OFTConfig(
        r=args.oft_rank,
        oft_block_size=0 if args.oft_rank else args.oft_block_size,
        module_dropout=args.module_dropout,
        target_modules=targets.modules,
        **shared_options(model, request, trains_rows=False),
    )


def vera_config(model: PreTrainedModel, request: LoadRequest) -> VeraConfig:
    """Two random matrices for all layers, and two trained vectors for each."""
    args = request.finetuning_args
    targets = _targets(model, request, args.lora_target)
    logger.info("VeRA of rank %s on: %s.", args.lora_rank, targets)
    return VeraConfig(
        r=args.lora_rank,
        vera_dropout=args.lora_dropout,
        target_modules=targets.modules,
        **shared_options(model, request, trains_rows=False),
    )


def loha_config(model: PreTrainedModel, request: LoadRequest) -> LoHaConfig:
    """The element-wise product of two low-rank matrices."""
    return LoHaConfig(**_lycoris(model, request, "LoHa"))


def lokr_config(model: PreTrainedModel, request: LoadRequest) -> LoKrConfig:
    """A Kronecker product, whose larger factor is of low rank where that is smaller."""
    return LoKrConfig(**_lycoris(model, request, "LoKr"))


def ia3_config(model: PreTrainedModel, request: LoadRequest) -> IA3Config:
    """One factor for each output of keys and values, and for each input of the last feed-forward layer."""
    args = request.finetuning_args
    if args.lora_target == ("all",):
        names = _targets(model, request, args.lora_target).modules
        modules = [name for name in names if name in (*KEYS_AND_VALUES, *FEED_FORWARD)]
        if not modules:
            raise UserError(
                "IA3 does not know the keys, values and feed-forward layers here; name them in lora_target."
            )
    else:
        found = _targets(model, request, args.lora_target)
        modules = full_names(model, found) if isinstance(found.modules, str) else found.modules
    feed_forward = [name for name in modules if name.endswith(FEED_FORWARD)]
    logger.info("IA3 on: %s.", ", ".join(modules))
    return IA3Config(
        target_modules=modules, feedforward_modules=feed_forward, **shared_options(model, request, trains_rows=False)
    )


def _lycoris(model: PreTrainedModel, request: LoadRequest, title: str) -> dict[str, Any]:
    args = request.finetuning_args
    targets = _targets(model, request, args.lora_target)
    logger.info("%s of rank %s on: %s.", title, args.lora_rank, targets)
    return {
        "r": args.lora_rank,
        "alpha": args.lora_alpha or 2 * args.lora_rank,
        "rank_dropout": args.lora_dropout,
        "module_dropout": args.module_dropout,
        "target_modules": targets.modules,
        **shared_options(model, request, trains_rows=False),
    }


def _targets(
    model: PreTrainedModel, request: LoadRequest, wanted: tuple[str, ...], key: str = "lora_target"
) -> Targets:
    """Find the layers; joined experts can carry LoRA only, which is said, or refused where they were asked for."""
    args = request.finetuning_args
    excluded = [score_head_name(model)] if request.head == "score" else []
    found = find_targets(
        model, wanted, key, excluded=excluded, with_vision=not args.freeze_vision_tower, with_routers=args.lora_router
    )
    if found.parameters and not found.modules:
        raise UserError(f"{key} {', '.join(wanted)} means joined experts, which only finetuning_type lora can adapt.")
    if any(mixture.fused for mixture in find_mixtures(model)):
        logger.info("The joined experts of this model stay as they are: only finetuning_type lora can adapt them.")
    return Targets(found.modules)
