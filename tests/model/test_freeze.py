"""Freeze tuning trains exactly the layers and modules that were named."""

from pathlib import Path
from typing import Any

import pytest
import torch
from model_making import load, model_args, tuning

from llamafactory.extras.errors import UserError


def trained_modules(model: Any) -> set[str]:
    return {
        name.rpartition(".")[0].replace("model.layers.", "")
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


LAYER = {
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
    "input_layernorm",
    "post_attention_layernorm",
}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"freeze_trainable_layers": 1}, {f"1.{part}" for part in LAYER}),
        ({"freeze_trainable_layers": -1}, {f"0.{part}" for part in LAYER}),
        ({"freeze_trainable_layers": 2}, {f"{index}.{part}" for part in LAYER for index in (0, 1)}),
        (
            {"freeze_trainable_layers": 1, "freeze_trainable_modules": ("mlp",)},
            {"1.mlp.gate_proj", "1.mlp.up_proj", "1.mlp.down_proj"},
        ),
        (
            {"freeze_trainable_layers": 1, "freeze_trainable_modules": ("q_proj", "self_attn.v_proj")},
            {"1.self_attn.q_proj", "1.self_attn.v_proj"},
        ),
        ({"freeze_trainable_layers": 0, "freeze_extra_modules": ("model.norm",)}, {"model.norm"}),
        ({"freeze_trainable_layers": 0, "freeze_extra_modules": ("lm_head",)}, {"model.embed_tokens"}),  # tied
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),  # a set has no order
)
def test_the_named_parts_are_trained(tiny_llama_dir: Path, values: dict[str, Any], expected: set[str]) -> None:
    model = load(tiny_llama_dir, tuning("freeze", **values))

    assert trained_modules(model) == expected


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"freeze_trainable_layers": 3}, "freeze_trainable_layers is 3, but this model has 2 layers"),
        ({"freeze_trainable_modules": ("mpl",)}, r"freeze_trainable_modules 'mpl' .*Did you mean 'mlp'"),
        ({"freeze_extra_modules": ("lm_heads",)}, r"freeze_extra_modules 'lm_heads' .*Did you mean 'lm_head'"),
        ({"freeze_trainable_layers": 0}, "chose no weights"),
    ],
)
def test_wrong_names_and_numbers_are_one_sentence(tiny_llama_dir: Path, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load(tiny_llama_dir, tuning("freeze", **values))


def test_trained_layers_are_float32_and_frozen_ones_bfloat16(tiny_llama_dir: Path) -> None:
    from llamafactory.extras.device import DeviceFacts
    from llamafactory.model import load_model, load_tokenizer
    from llamafactory.model.dtype import DtypeFlags, choose_dtype

    dtypes = choose_dtype(DtypeFlags(is_trainable=True), DeviceFacts("cpu", 1, True, "CPU"))
    arguments = model_args(tiny_llama_dir)
    tokenizer = load_tokenizer(arguments)["tokenizer"]
    exact = load(tiny_llama_dir).state_dict()
    expected = {"lora": (torch.float32, torch.bfloat16), "freeze": (torch.float32, torch.bfloat16)}
    expected["full"] = (torch.float32, None)

    for method, (trained, frozen) in expected.items():
        finetuning = tuning(method, freeze_trainable_layers=1)
        model = load_model(tokenizer, arguments, finetuning, True, dtype=dtypes)
        formats = {(parameter.requires_grad, parameter.dtype) for parameter in model.parameters()}
        assert formats == {(True, trained), (False, frozen)} - {(False, None)}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name in exact:
                assert torch.equal(parameter, exact[name])  # never rounded on the way
