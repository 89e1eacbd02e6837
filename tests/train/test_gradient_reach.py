"""Row N37: one step reaches every adapter weight and no frozen one, whatever is recomputed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_trainer import make_rows


@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": True}, {"use_reentrant": False}])
def test_n37_a_step_moves_every_adapter_and_nothing_else(
    make_model: Callable[..., Any], make_trainer: Any, checkpointing: dict[str, bool] | None
):
    model = make_model("lora")
    if checkpointing is not None:
        model.get_base_model().gradient_checkpointing_enable(checkpointing)
        model.enable_input_require_grads()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    make_trainer(model, make_rows(4), max_steps=1).train()
    for name, weight in model.named_parameters():
        has_moved = not torch.equal(weight.detach(), before[name])
        assert has_moved == ("lora_B" in name), name  # lora_A gets no gradient while B is zero
        assert weight.requires_grad == ("lora_" in name)
