"""LoRA that starts from the weights themselves: PiSSA and OLoRA.

PiSSA (arxiv.org/abs/2404.02948) and OLoRA (arxiv.org/abs/2406.01775) put the main directions of each weight into
the adapter and take them out of the base. Such an adapter would be of use with that changed base alone. So what is
saved is always an ordinary one for the original base: the trained product less the one it started from,
W + s (B A - B0 A0), which is LoRA of twice the rank. A checkpoint holds both halves, so training goes on from it
exactly.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners import lora
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...extras.errors import UserError
from ...extras.logging import get_logger
from ..request import LoadRequest
from .carried import Carried


logger = get_logger(__name__)

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
SEED = 0
"""The fast decomposition of PiSSA draws numbers: the same in each run, so that a resumed one starts from the same."""


def ready_lora(model: PeftModel, request: LoadRequest | None) -> Carried | None:
    """Make a LoRA adapter ready; `request` is that of a fresh one, None for one that was loaded."""
    config = model.active_peft_config
    if request is not None and starts_from_weights(config):
        keep_start(model)
        if not request.finetuning_args.pissa_convert:
            logger.info("The result is saved as an ordinary adapter for the original weights, of twice the rank.")
    return None


def starts_from_weights(config: PeftConfig) -> bool:
    """Whether a fresh adapter of this config takes something out of the base."""
    name = getattr(config, "init_lora_weights", None)
    return isinstance(name, str) and name.startswith(("pissa", "olora"))


def keep_start(model: PeftModel) -> None:
    """Keep what a fresh adapter starts from, and let the model save the difference to it as an ordinary adapter."""
    name = str(model.active_adapter)
    start = {key: weight.detach().clone() for key, weight in _matrices(get_peft_model_state_dict(model)).items()}
    save = model.save_pretrained

    def save_pretrained(save_directory: str | Path, *args: Any, is_main_process: bool = True, **kwargs: Any) -> None:
        save(str(save_directory), *args, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            _double(Path(save_directory), start)

    def load_adapter(model_id: str | Path, adapter_name: str = name, *args: Any, **kwargs: Any) -> Any:
        halves = _split(load_file(Path(model_id) / WEIGHTS_FILE), model, start)
        _move_base(model, start, halves.start)
        start.update(halves.start)
        return set_peft_model_state_dict(model, halves.trained, adapter_name)

    vars(model).update(save_pretrained=save_pretrained, load_adapter=load_adapter)


class _Halves:
    """A saved adapter of twice the rank, taken apart."""

    def __init__(self, trained: dict[str, Tensor], start: dict[str, Tensor]) -> None:
        self.trained = trained
        self.start = start


def _matrices(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if _side(name)}


def _side(name: str) -> str:
    """Tell the two matrices of LoRA from everything else in the file: "A", "B" or "" ."""
    return next((side for side in "AB" if f".lora_{side}." in name or f".lora_embedding_{side}" in name), "")


def _double(folder: Path, start: Mapping[str, Tensor]) -> None:
    """Rewrite a saved adapter as the difference to what it started from."""
    tensors = load_file(folder / WEIGHTS_FILE)
    for name, first in start.items():
        first = first.to(tensors[name])
        one = _side(name) == "A"
        tensors[name] = torch.cat([tensors[name], first if one else -first], dim=0 if one else 1).contiguous()
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    path = folder / CONFIG_FILE
    config = json.loads(path.read_text(encoding="utf-8"))
    growth = math.sqrt(2) if config["use_rslora"] else 2  # keeps the scale, alpha / r or alpha / sqrt(r)
    config |= {"r": 2 * config["r"], "lora_alpha": config["lora_alpha"] * growth, "init_lora_weights": True}
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def _split(tensors: dict[str, Tensor], model: PeftModel, start: Mapping[str, Tensor]) -> _Halves:
    """Undo `_double`."""
    trained, first = dict(tensors), dict[str, Tensor]()
    for name, own in start.items():
        dim = 0 if _side(name) == "A" else 1
        both = tensors.get(name)
        if both is None or both.shape[dim] != 2 * own.shape[dim]:
            raise UserError(f"The checkpoint does not fit this run: {name} is missing or has another rank.")
        one, two = both.chunk(2, dim)
        trained[name] = one.contiguous()
        first[name] = (two if dim == 0 else -two).contiguous()
    return _Halves(trained, first)


def _move_base(model: PeftModel, own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Take from the base what the saved adapter started from, where another machine decomposed otherwise."""
    if all(torch.equal(own[name].cpu(), saved[name]) for name in own):
        return
    for name, layer in model.named_modules():
        if not isinstance(layer, lora.Linear):
            continue
        weight, scale = layer.get_base_layer().weight, layer.scaling[str(model.active_adapter)]
        key_a, key_b = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
        here = own[key_b].float() @ own[key_a].float()
        there = saved[key_b].to(here) @ saved[key_a].to(here)
        weight.data = (weight.data.float() + scale * (here - there)).to(weight.dtype)
