"""Adapters that requests may name: they stay beside the weights, and a step runs with one of them or with none."""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from transformers import PreTrainedModel

from ..extras.errors import UserError
from ..model.sources import resolve_adapter


if TYPE_CHECKING:
    from ..hparams import ModelArguments


class AdapterSwitch:
    """Several adapters on one model, of which one at a time, or none, takes part in a forward pass."""

    def __init__(self, model: PreTrainedModel, folders: Mapping[str, Path]) -> None:
        """Put the adapters onto the model's own modules, with their weights bit for bit as they were saved."""
        peft_model: Any = None
        for name, folder in folders.items():
            try:
                peft_model = add_adapter(peft_model or model, name, folder)
            except (ValueError, RuntimeError) as error:
                raise UserError(
                    f"The adapter {name!r} ({folder}) does not fit {model.name_or_path}: {error}"
                ) from error
        model.requires_grad_(False)
        self.names = tuple(folders)
        self._layers: list[BaseTunerLayer] = [some for some in model.modules() if isinstance(some, BaseTunerLayer)]
        self._used: str | None = self.names[0]
        self.use(None)

    def use(self, name: str | None) -> None:
        """Choose the adapter of the next forward passes."""
        if name == self._used:
            return
        for layer in self._layers:
            if name is not None:
                layer.set_adapter(name)
            layer.enable_adapters(name is not None)
        self._used = name


def add_adapter(model: PreTrainedModel | PeftModel, name: str, folder: Path) -> PeftModel:
    """Put one more adapter onto a model, in the format in which it was saved."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # PEFT 0.21 asks so
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), adapter_name=name)
        else:
            model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
    set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"), adapter_name=name)
    return model


def load_adapters(model: PreTrainedModel, model_args: "ModelArguments") -> AdapterSwitch | None:
    """Load the adapters that requests may name; None when there are none."""
    words = read_adapters(model_args.infer_adapters or ())
    folders = {name: resolve_adapter(path, model_args) for name, path in words.items()}
    return AdapterSwitch(model, folders) if folders else None


def read_adapters(words: Iterable[str]) -> dict[str, str]:
    """Read `name=path` words; a path alone is named after its folder."""
    found: dict[str, str] = {}
    for word in words:
        name, _, path = word.rpartition("=")
        name = name or Path(path).name
        if name in found:
            raise UserError(f"infer_adapters names {name!r} twice; give each adapter a name of its own: name=path.")
        found[name] = path
    return found
