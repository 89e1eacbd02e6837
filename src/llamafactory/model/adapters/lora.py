"""LoRA (arxiv.org/abs/2106.09685) and what it can start from; PEFT does the work."""

from typing import TYPE_CHECKING, Any

from peft import LoraConfig, TaskType
from transformers import PreTrainedModel

from ...extras.errors import UserError
from ...extras.logging import get_logger
from ..expansion import new_layers
from ..model_utils.valuehead import score_head_name
from ..modules import match_modules
from ..request import Head, LoadRequest
from ..vocabulary import trained_rows
from .targeted import full_names, within_layers
from .targets import Targets, describe_mixtures, find_mixtures, find_targets


if TYPE_CHECKING:
    from ...hparams import FinetuningArguments

logger = get_logger(__name__)

PEFT_SCORES = ("classifier", "score")  # PEFT saves layers of these names with a classification model by itself


def lora_config(model: PreTrainedModel, request: LoadRequest) -> LoraConfig:
    """Return the PEFT config of a fresh adapter, with all targets checked against the model."""
    args = request.finetuning_args
    targets = lora_targets(model, args, request.head)
    _check_experts(targets, args)
    logger.info("LoRA of rank %s on: %s.", args.lora_rank, targets)
    return LoraConfig(
        r=args.lora_rank,
        lora_alpha=args.lora_alpha or 2 * args.lora_rank,
        lora_dropout=args.lora_dropout,
        use_rslora=args.use_rslora,
        use_dora=args.use_dora,
        target_modules=targets.modules,
        target_parameters=list(targets.parameters) or None,
        trainable_token_indices=_new_rows(model, request),
        **starting_point(args),
        **shared_options(model, request),
    )


def lora_targets(model: PreTrainedModel, args: "FinetuningArguments", head: Head) -> Targets:
    """Find what `lora_target` means in this model, and say what becomes of its experts."""
    targets = find_targets(
        model,
        args.lora_target,
        "lora_target",
        excluded=[score_head_name(model)] if head == "score" else [],
        with_vision=not args.freeze_vision_tower,
        with_routers=args.lora_router,
    )
    if args.use_llama_pro:
        targets = within_layers(model, targets, new_layers(model, args.freeze_trainable_layers))
    mixtures = list(find_mixtures(model))
    if mixtures:
        logger.info("%s", describe_mixtures(model, full_names(model, targets), mixtures))
    return targets


def starting_point(args: "FinetuningArguments") -> dict[str, Any]:
    """Return the option that tells PEFT what the matrices start from."""
    if args.pissa_init:
        return {"init_lora_weights": "pissa" if args.pissa_iter == -1 else f"pissa_niter_{args.pissa_iter}"}
    if args.lora_init == "eva":
        from peft import EvaConfig

        return {"init_lora_weights": "eva", "eva_config": EvaConfig(rho=1.0, use_label_mask=False)}
    return {"init_lora_weights": True if args.lora_init == "default" else args.lora_init}


def shared_options(model: PreTrainedModel, request: LoadRequest, *, trains_rows: bool = True) -> dict[str, Any]:
    """Return the options that every method on layers takes: the task, and the modules that are trained in full.

    The score layer of a reward model is new, so it always is one of them; so are the embedding and its counterpart
    where tokens were added, unless the method can train the rows of these alone (`trains_rows`).
    """
    args = request.finetuning_args
    saved = match_modules(model, args.additional_target, "additional_target") if args.additional_target else None
    if not trains_rows and saved is None and request.new_token_ids:
        saved = list(trained_rows(model, request.new_token_ids) or ())
        logger.info("%s are trained in full, for the new tokens.", ", ".join(saved))
    score = score_head_name(model) if request.head == "score" else None
    if score is not None and score not in PEFT_SCORES:
        saved = [*(saved or []), score]
    return {"task_type": TaskType.SEQ_CLS if score else TaskType.CAUSAL_LM, "modules_to_save": saved}


def _new_rows(model: PreTrainedModel, request: LoadRequest) -> dict[str, list[int]] | None:
    """Train the rows of new tokens, unless the user trains whole modules, which then have to hold them."""
    return None if request.finetuning_args.additional_target else trained_rows(model, request.new_token_ids)


def _check_experts(targets: Targets, args: "FinetuningArguments") -> None:
    """PEFT adapts a parameter without a layer of its own in the plain way only."""
    others = {"use_dora": args.use_dora, "lora_dropout": args.lora_dropout > 0, "pissa_init": args.pissa_init}
    others["lora_init"] = args.lora_init not in ("default", "gaussian")
    for key in (key for key, is_set in others.items() if is_set and targets.parameters):
        raise UserError(
            f"{key} {getattr(args, key)} cannot be used on the joined experts or routers of this model "
            f"({', '.join(targets.parameters)}): remove {key}, or name the layers in lora_target without them."
        )
