"""Heads with one number: the score of a reward model, and the value head beside the words of a policy.

A reward model is a sequence-classification model of transformers with one label, so anybody can load it. Its head is
a layer such as `score`, trained in full beside an adapter and saved with it. The established tool keeps such a head in
a file of its own, `value_head.safetensors` (or `.bin`), beside the adapter; it is read here, and the value head that
PPO trains with the policy is written in the same form: `v_head.summary.weight` [1, D] and `v_head.summary.bias` [1].
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import PeftConfig, TaskType
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ...extras.errors import UserError
from ...extras.logging import get_logger
from ..load_errors import reading_model
from ..request import Head, LoadRequest
from ..sources import HUB_ID


if TYPE_CHECKING:
    from ...hparams import ModelArguments

logger = get_logger(__name__)

VALUE_HEAD = "v_head"
SAFE_FILE = "value_head.safetensors"
PICKLE_FILE = "value_head.bin"
WEIGHT, BIAS = "v_head.summary.weight", "v_head.summary.bias"


class ValueHead(nn.Module):
    """One number per position, computed in float32 as far as its weights are."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.summary = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.summary.weight)
        nn.init.zeros_(self.summary.bias)

    def forward(self, hidden_KD: Tensor) -> Tensor:
        """Return the values [K] of hidden states [K, D]."""
        return self.summary(hidden_KD.to(self.summary.weight.dtype)).squeeze(-1)

    @property
    def is_fresh(self) -> bool:
        """Whether it was neither trained nor read from a file."""
        return not (self.summary.weight.any() or self.summary.bias.any())


def add_value_head(model: PreTrainedModel, request: LoadRequest) -> PreTrainedModel:
    """The pass that puts a value head on the policy of PPO; it starts at zero, or from the file of the adapter.

    The head hangs on the model itself, so that it is wrapped, reduced and optimized with it; files of plain weights
    leave it out (`save_value_head` writes it).
    """
    if request.head != "value" or not request.is_trainable:
        return model
    inner = _inner(model)
    weight = inner.get_input_embeddings().get_parameter("weight")
    head = ValueHead(inner.config.get_text_config().hidden_size)
    head.to(device=weight.device, dtype=request.dtypes.trainable)
    inner.add_module(VALUE_HEAD, head)
    inner._keys_to_ignore_on_save = {*(inner._keys_to_ignore_on_save or ()), WEIGHT, BIAS}
    names = request.model_args.adapter_name_or_path or (request.model_args.model_name_or_path,)
    params = load_valuehead_params(names[-1], request.model_args)
    if params is not None:
        copy_value_head(head, params, str(names[-1]))
    return model


def settle_score_head(model: PreTrainedModel, request: LoadRequest) -> PreTrainedModel:
    """The pass over a reward model that takes the score layer from a value head file, where there is one.

    A fresh layer is for training only: without a file, an adapter or a layer of its own, a model gives no scores.
    """
    return take_score(model, request.model_args) if request.head == "score" else model


def without_fresh_score(
    model: PreTrainedModel, missing: list[str], model_args: "ModelArguments", *, is_trainable: bool
) -> list[str]:
    """Drop the score layer from the names of missing tensors: a language model has none, and training draws one.

    Without training, it must come from an adapter or from a value head file.
    """
    name = score_head_name(model)
    others = [item for item in missing if not item.startswith(f"{name}.")]
    is_given = is_trainable or model_args.adapter_name_or_path is not None
    if len(others) < len(missing) and not is_given:
        source = model_args.model_name_or_path
        if load_valuehead_params(source, model_args) is None:
            raise UserError(f"The model {source} has no score layer, so it is no reward model; train one: stage rm.")
    return others


def refuse_foreign_score(folder: Path, head: Head) -> None:
    """Refuse to train on with an adapter whose score layer lies outside of it: it could not be saved with it."""
    if head == "score" and any((folder / name).is_file() for name in (SAFE_FILE, PICKLE_FILE)):
        raise UserError(
            f"The adapter {folder} keeps its score in a value head file, so training cannot go on with it: set "
            "create_new_adapter: true, which merges it and starts a new adapter from the same score."
        )


def value_head_of(model: nn.Module) -> ValueHead | None:
    """Return the value head of a policy, whatever it is wrapped in."""
    return next((module for module in model.modules() if isinstance(module, ValueHead)), None)


def save_value_head(model: nn.Module, folder: Path) -> None:
    """Write the value head beside the other weights; a model without one writes nothing."""
    head = value_head_of(model)
    if head is not None:
        weights = {WEIGHT: head.summary.weight, BIAS: head.summary.bias}
        save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, folder / SAFE_FILE)


def load_value_head(model: nn.Module, folder: Path) -> None:
    """Read back what `save_value_head` wrote, bit for bit; used when a run goes on from a checkpoint."""
    head = value_head_of(model)
    if head is None:
        return
    path = folder / SAFE_FILE
    if not path.is_file():
        raise UserError(f"The checkpoint {folder} lacks {SAFE_FILE}: it is damaged or of another stage than ppo.")
    copy_value_head(head, load_file(path), str(folder))


def copy_value_head(head: ValueHead, params: dict[str, Tensor], source: str) -> None:
    """Copy the numbers of a file into a head of the same width."""
    weight = _summary(params, source)
    if weight.numel() != head.summary.weight.numel():
        raise UserError(
            f"The value head of {source} is for hidden states of {weight.numel()} numbers, but this model has "
            f"{head.summary.weight.numel()}: they do not belong together."
        )
    head.summary.weight.data.copy_(weight.view_as(head.summary.weight))
    head.summary.bias.data.copy_(params.get(BIAS, torch.zeros(1)).view(1))


def load_valuehead_params(path_or_repo_id: str, model_args: "ModelArguments") -> dict[str, Tensor] | None:
    """Return the tensors of a value head file in a folder or hub repository; None where there is no such file.

    A `.bin` file is read with `weights_only`, so that nothing in it is executed.
    """
    folder = Path(path_or_repo_id).expanduser()
    if folder.is_dir():
        found = next((folder / name for name in (SAFE_FILE, PICKLE_FILE) if (folder / name).is_file()), None)
    elif not folder.exists() and HUB_ID.fullmatch(path_or_repo_id):
        found = _from_hub(path_or_repo_id, model_args)
    else:
        found = None
    if found is None:
        return None
    with reading_model(folder):
        return load_file(found) if found.suffix == ".safetensors" else torch.load(found, "cpu", weights_only=True)


def head_of(config: PreTrainedConfig, adapters: Sequence[Path]) -> Head:
    """Tell a reward model from one that writes: by its adapter, or by the class that it was saved as."""
    if adapters:
        folder = adapters[-1]
        task = PeftConfig.from_pretrained(str(folder)).task_type
        is_score = task == TaskType.SEQ_CLS
    else:
        is_score = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
    return "score" if is_score else "words"


def exported_head(found: Head, model_args: "ModelArguments", *, is_reward: bool) -> Head:
    """Decide what becomes of a value head file when a model is exported.

    The established tool writes the same files for a reward model and for a policy of PPO, so only the user knows which
    one it is (`stage: rm`); a head that is left behind is told.
    """
    name = (model_args.adapter_name_or_path or (model_args.model_name_or_path,))[-1]
    if found == "score":
        return found
    has_file = load_valuehead_params(name, model_args) is not None
    if is_reward and not has_file:
        raise UserError(
            f"stage: rm exports a reward model, but {name} has neither a score layer nor a value head file."
        )
    if has_file and not is_reward:
        logger.warning(
            "%s has a value head file, which is left out of this model that writes; to export it as a reward model, "
            "with its score, set stage: rm.",
            name,
        )
    return "score" if is_reward else "words"


def take_score(model: PreTrainedModel, model_args: "ModelArguments") -> PreTrainedModel:
    """Take the score layer from a value head file beside the adapter or the model, where there is one."""
    names = model_args.adapter_name_or_path or (model_args.model_name_or_path,)
    params = load_valuehead_params(names[-1], model_args)
    if params is not None:
        put_value_head_on_score(model, params, str(names[-1]))
    return model


def score_head_name(model: nn.Module) -> str:
    """Return the name of the layer that makes the score of a classification model: what its base model lacks."""
    inner = _inner(model)
    base = cast(str, inner.base_model_prefix)
    names = [name for name, _ in inner.named_children() if name != base]
    if len(names) != 1:
        raise UserError(
            f"{type(inner).__name__} has {len(names)} layers beside its base model ({', '.join(names) or 'none'}); "
            "stage rm needs a model with one score layer."
        )
    return names[0]


def put_value_head_on_score(model: PreTrainedModel, params: dict[str, Tensor], source: str) -> None:
    """Use a value head file of the established tool as the score layer of a reward model.

    The score layer has no bias, and needs none: it would move all scores alike.
    """
    weight = _summary(params, source)
    layer = model.get_submodule(score_head_name(model))
    target = next(iter(layer.parameters()), None)
    if not isinstance(layer, nn.Linear) or target is None or target.numel() != weight.numel():
        raise UserError(f"The value head of {source} does not fit the score layer of {type(model).__name__}.")
    layer.weight.data.copy_(weight.view_as(layer.weight))
    bias = float(params.get(BIAS, torch.zeros(1)).float())
    logger.info("The score layer starts from the value head of %s; its bias %.4g is left out.", source, bias)


def _summary(params: dict[str, Tensor], source: str) -> Tensor:
    weight = params.get(WEIGHT)
    if weight is None:
        raise UserError(f"The value head file of {source} lacks {WEIGHT}; it holds {', '.join(sorted(params))}.")
    return weight


def _inner(model: nn.Module) -> PreTrainedModel:
    """Return the model of transformers under an adapter."""
    outer: Any = model
    return outer.get_base_model() if hasattr(outer, "get_base_model") else outer


def _from_hub(name: str, model_args: "ModelArguments") -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    for file in (SAFE_FILE, PICKLE_FILE):
        try:
            path = hf_hub_download(
                name,
                file,
                revision=model_args.model_revision,
                token=model_args.hf_hub_token,
                cache_dir=model_args.cache_dir,
            )
        except (HfHubHTTPError, LocalEntryNotFoundError):
            continue
        return Path(path)
    return None
