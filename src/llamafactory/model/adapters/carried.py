"""What an adapter has to carry in a file of its own, so that a run can go on from it bit for bit.

PEFT saves what an adapter needs to answer. Some need more to be trained on: AdaLoRA what it has seen of each
direction, p-tuning the network behind its vectors. It is written beside the weights at each save, and read back
whenever PEFT reads the weights back; both are methods of this one model that are wrapped, so every caller comes by.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor


CARRIED_FILE = "adapter_state.safetensors"


@dataclass(frozen=True)
class Carried:
    """What is saved beside the weights of an adapter."""

    collect: Callable[[], Mapping[str, Tensor]]
    restore: Callable[[Mapping[str, Tensor]], None]
    is_whole: bool = False
    """It holds all that is trained, of which PEFT's own file holds a result: that file is not read back."""


def carry(model: PeftModel, carried: Carried) -> Carried:
    """Let a model save what is carried, and read it back whenever it reads its adapter."""
    save, load = model.save_pretrained, model.load_adapter

    def save_pretrained(save_directory: str | Path, *args: Any, is_main_process: bool = True, **kwargs: Any) -> None:
        save(str(save_directory), *args, is_main_process=is_main_process, **kwargs)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in carried.collect().items()}
        if is_main_process and tensors:
            save_file(tensors, Path(save_directory) / CARRIED_FILE)

    def load_adapter(model_id: str | Path, *args: Any, **kwargs: Any) -> Any:
        result = None if carried.is_whole else load(str(model_id), *args, **kwargs)
        file = Path(model_id) / CARRIED_FILE
        if carried.is_whole or file.is_file():
            carried.restore(load_file(file))
        return result

    vars(model).update(save_pretrained=save_pretrained, load_adapter=load_adapter)
    return carried
