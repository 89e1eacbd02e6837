"""Tuning that changes the model's own weights: all of them, or those of some layers."""

from transformers import PreTrainedModel

from ...extras.errors import UserError
from ...extras.logging import get_logger
from ..expansion import new_layers
from ..freeze import choose_trainable
from ..model_utils.valuehead import score_head_name
from ..request import LoadRequest
from ..vocabulary import trained_rows


logger = get_logger(__name__)


def train_all(model: PreTrainedModel, request: LoadRequest) -> PreTrainedModel:
    """Let every weight learn."""
    return model.requires_grad_(request.is_trainable)


def train_layers(model: PreTrainedModel, request: LoadRequest) -> PreTrainedModel:
    """Let some layers learn; the score layer of a reward model is new and always does."""
    if not request.is_trainable:
        return model
    args = request.finetuning_args
    extra = list(args.freeze_extra_modules or ())
    if request.head == "score":
        extra.append(score_head_name(model))
    new_rows = trained_rows(model, request.new_token_ids) or {}
    if new_rows:
        logger.info("%s learn too, for the new tokens.", ", ".join(new_rows))
    extra += [name.rpartition(".")[2] for name in new_rows]
    layers = new_layers(model, args.freeze_trainable_layers) if args.use_llama_pro else None
    if args.use_llama_pro and args.freeze_trainable_layers < 0:
        raise UserError("use_llama_pro: true counts the new blocks: freeze_trainable_layers must be above 0.")
    choose_trainable(model, args.freeze_trainable_layers, args.freeze_trainable_modules, extra, layers=layers)
    return model
