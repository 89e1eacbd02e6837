"""Small corrections of one loaded model; classes and modules of other packages are never touched."""

from transformers import PreTrainedModel

from .depths import has_depths
from .request import LoadRequest


SAMPLING_DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "typical_p": 1.0}


def settle_generation_config(model: PreTrainedModel, request: LoadRequest) -> PreTrainedModel:
    """Let a generation config that sets a temperature also sample: saving a contradictory one is an error."""
    config = getattr(model, "generation_config", None)  # a model that only scores has none
    if config is None or config.do_sample:
        return model
    if any(getattr(config, key, None) not in (None, default) for key, default in SAMPLING_DEFAULTS.items()):
        config.do_sample = True
    return model


def settle_cache_use(model: PreTrainedModel, request: LoadRequest) -> PreTrainedModel:
    """No KV cache in training, where it only costs memory and breaks packed rows."""
    can_keep = not request.is_trainable and not has_depths(model)
    model.config.use_cache = request.model_args.use_kv_cache and can_keep
    return model
