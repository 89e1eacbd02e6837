"""Layers of quantizers in training: N37, each gives a gradient, also after it has answered without one."""

from typing import Any

import pytest
import torch
from model_making import FLOAT32, model_args, tuning
from torch import Tensor, nn

from llamafactory.extras.errors import UserError
from llamafactory.model.quantization import settle_packing
from llamafactory.model.request import LoadRequest


class OnceForAll(nn.Module):
    """Behaves as gptqmodel's CPU layer: the first answer in evaluation decides how all others are computed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_features = self.out_features = width
        self.register_buffer("qweight", torch.eye(width))
        self.linear_mode: str | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.linear_mode is None:
            self.linear_mode = "train" if self.training or x.requires_grad else "inference"
        y = x @ self.get_buffer("qweight")
        return y.detach() if self.linear_mode == "inference" else y


class Deaf(OnceForAll):
    """Has no derivative at all."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


def with_layer(model: Any, kind: type[nn.Module]) -> Any:
    for layer in model.model.layers:
        layer.self_attn.o_proj = kind(model.config.hidden_size)
    return model


def request(is_trainable: bool) -> LoadRequest:
    return LoadRequest(
        model_args=model_args("any"), finetuning_args=tuning(), is_trainable=is_trainable, dtypes=FLOAT32
    )


def test_n37_an_evaluation_before_training_does_not_end_the_gradient(tiny_llama: Any) -> None:
    model = settle_packing(with_layer(tiny_llama(), OnceForAll), request(is_trainable=True))
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        model.eval()(input_ids=ids)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    assert model.model.layers[0].self_attn.v_proj.weight.grad.abs().max() > 0


def test_n37_layers_without_a_gradient_are_refused(tiny_llama: Any) -> None:
    with pytest.raises(UserError, match=r"\(Deaf\) give no gradient"):
        settle_packing(with_layer(tiny_llama(), Deaf), request(is_trainable=True))
    settle_packing(with_layer(tiny_llama(), Deaf), request(is_trainable=False))
