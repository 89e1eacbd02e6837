"""Longer texts than a model was made for: the angles of its positions are stretched (`rope_scaling`).

The factor is that of the wanted length to the length the model was made with, rounded up, so that positions stay
within what it has seen. It ends up in the config, which a whole model saves by itself and an adapter keeps in a note
(base_changes.py): training, chat and export see the same angles.
"""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from transformers import PreTrainedConfig

from ...extras.errors import UserError
from ...extras.logging import get_logger


if TYPE_CHECKING:
    from ...hparams import ModelArguments

logger = get_logger(__name__)

INFERENCE_FACTOR = 2.0
"""How far a model is stretched where no training length says how far."""
LOW_FREQ_FACTOR, HIGH_FREQ_FACTOR = 1.0, 4.0
"""Llama 3's own: angles between these two are stretched partly."""
Stretch = Callable[[float, int], dict[str, Any]]
STRETCHES: Mapping[str, Stretch] = {
    "linear": lambda factor, original: {"factor": factor},
    "dynamic": lambda factor, original: {"factor": factor},
    "yarn": lambda factor, original: {"factor": factor, "original_max_position_embeddings": original},
    "llama3": lambda factor, original: {
        "factor": factor,
        "original_max_position_embeddings": original,
        "low_freq_factor": LOW_FREQ_FACTOR,
        "high_freq_factor": HIGH_FREQ_FACTOR,
    },
}
"""What each kind needs besides its name and the base of the angles."""


def stretch_positions(config: PreTrainedConfig, model_args: "ModelArguments") -> Mapping[str, Any] | None:
    """Stretch a config for texts of `rope_length` tokens (None: for answering) and return what was changed.

    A model that reads as many tokens already is left alone, with one line that says so.
    """
    kind, wanted = model_args.rope_scaling, model_args.rope_length
    if kind is None:
        return None
    text: Any = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None)
    parameters = getattr(text, "rope_parameters", None)
    if not isinstance(longest, int) or not isinstance(parameters, dict):
        raise UserError(f"rope_scaling {kind} needs a model with rotary positions; {config.model_type} has none.")
    if "rope_theta" not in parameters:
        raise UserError(f"rope_scaling {kind}: the layers of {config.model_type} have angles of their own; remove it.")
    known = cast("dict[str, Any]", parameters)
    if wanted is None and known.get("rope_type", "default") != "default":
        logger.info("rope_scaling %s: the model is stretched already, and stays so.", kind)
        return None
    if wanted is not None and wanted <= longest:
        logger.info("rope_scaling %s: this model reads %s tokens, and %s are enough.", kind, longest, wanted)
        return None
    original = int(known.get("original_max_position_embeddings") or longest)
    factor = INFERENCE_FACTOR if wanted is None else float(math.ceil(wanted / original))
    kept = {name: known[name] for name in ("rope_theta", "partial_rotary_factor") if name in known}
    stretched = {**kept, "rope_type": kind, **STRETCHES[kind](factor, original)}
    # dynamic stretches by how far a text is beyond this length, so there it must stay what the model was made with
    length = original if kind == "dynamic" else int(original * factor)
    text.rope_parameters, text.max_position_embeddings = stretched, length
    logger.info("rope_scaling %s: positions are stretched %s times, from %s tokens.", kind, f"{factor:g}", original)
    return {"rope_parameters": stretched, "max_position_embeddings": length}
