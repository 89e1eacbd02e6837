"""Adapters on packed weights: the fused layers compute what the layers' own code does, and keep less."""

import ctypes
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from model_making import FLOAT32, model_args, tuning
from test_fused import LAYERS, adapted, assert_same_step, inputs, kinds, make_family, step
from torch import nn

from llamafactory.extras.heap import trim_heap
from llamafactory.model import load_model
from llamafactory.model.fused.linear import FEW_TOKENS, fits, projection_of
from llamafactory.model.fused.passes import fuse_parts
from llamafactory.model.quantization.float8 import Float8Linear
from llamafactory.model.quantization.sizes import Packing, largest_packed, mapped_bytes


def pack(model: Any, *, in_float8: bool = False) -> Any:
    """Pack all linear layers but the head, to 8 bits."""
    for path, layer in [(path, module) for path, module in model.named_modules() if type(module) is nn.Linear]:
        if path != "lm_head":
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, Float8Linear(layer, in_float8=in_float8))
    return model


def pack_bnb(model: Any, *, is_double: bool, dtype: torch.dtype = torch.float32) -> Any:
    """Pack them to the 4 bits of bitsandbytes."""
    import bitsandbytes as bnb

    for path, layer in [(path, module) for path, module in model.named_modules() if type(module) is nn.Linear]:
        if path == "lm_head":
            continue
        packed = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, dtype, is_double, quant_type="nf4"
        )
        packed.weight = bnb.nn.Params4bit(
            layer.weight.detach().to(dtype), requires_grad=False, quant_type="nf4", compress_statistics=is_double
        )
        packed.bias = layer.bias
        packed.support_avx512bf16_for_cpu = False
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, packed.to("cpu"))
    model.is_loaded_in_4bit = True
    return model


def assert_fused_alike(model: Any) -> None:
    """Everything is replaced, and a step is the same."""
    reference = step(model)

    tally = fuse_parts(model)

    assert tally.fused["adapters"] == 7 * LAYERS
    assert tally.fused["mlps"] == tally.fused["shared"] == LAYERS
    assert_same_step(model, reference)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text"])
def test_a_step_on_packed_weights_is_the_same(family: str) -> None:
    assert_fused_alike(adapted(pack(make_family(family))))


@pytest.mark.quantized
@pytest.mark.parametrize("is_double", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_step_on_four_bits_is_the_same(family: str, is_double: bool) -> None:
    assert_fused_alike(adapted(pack_bnb(make_family(family, hidden_size=64, head_dim=16), is_double=is_double)))


@pytest.mark.quantized
def test_four_bits_of_another_format_than_the_products_keep_their_own_way() -> None:
    model = adapted(pack_bnb(make_family("llama", hidden_size=64, head_dim=16), is_double=True, dtype=torch.bfloat16))
    fuse_parts(model)
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    projection = projection_of(layer)

    assert projection is not None
    assert fits(torch.zeros(1, 40, 64, dtype=torch.bfloat16), projection)
    assert not fits(torch.zeros(1, 40, 64), projection)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_recomputes_the_same(use_reentrant: bool) -> None:
    model = adapted(pack(make_family("qwen3")))
    reference = step(model)
    fuse_parts(model)
    model.enable_input_require_grads()
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    assert_same_step(model, reference)


def test_products_in_eight_bits_keep_their_own_code() -> None:
    model = adapted(pack(make_family("llama"), in_float8=True))

    tally = fuse_parts(model)

    assert tally.kept["adapters"] == 7 * LAYERS
    assert "FusedLinear" not in kinds(model)


def test_a_disabled_adapter_is_left_out() -> None:
    model = adapted(pack(make_family("llama")))
    with torch.no_grad(), model.disable_adapter():
        expected = model(**inputs()).logits
    fuse_parts(model)

    with model.disable_adapter():
        logits = model(**inputs()).logits

    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_few_tokens_without_a_gradient_go_the_packages_way() -> None:
    model = adapted(pack(make_family("llama")))
    fuse_parts(model)
    projection = projection_of(model.get_submodule("base_model.model.model.layers.0.mlp.up_proj"))
    few, many = torch.zeros(1, FEW_TOKENS - 1, 32), torch.zeros(1, FEW_TOKENS, 32)

    assert projection is not None
    with torch.no_grad():
        assert (fits(few, projection), fits(many, projection)) == (False, True)
    assert fits(few, projection)


def test_largest_and_mapped_matrices_are_counted() -> None:
    model, wide = (make_family("llama", vocab_size=size).requires_grad_(False) for size in (64, 4096))
    packing = Packing("fp8", 8)
    num_packed = sum(module.weight.numel() for path, module in wide.named_modules() if path.endswith("_proj"))

    assert largest_packed(model, packing) == 32 * 48
    assert largest_packed(model) == 0
    assert largest_packed(pack(make_family("llama"))) == 32 * 48
    assert mapped_bytes(model, packing, torch.bfloat16) == 0
    assert mapped_bytes(wide, packing, torch.bfloat16) == 2 * num_packed


@pytest.mark.parametrize("vocab_size", [408, 4096], ids=["small-part", "large-part"])
def test_weights_that_stay_whole_leave_the_file_where_they_are_its_smaller_part(
    tmp_path: Path, tiny_tokenizer: Any, vocab_size: int
) -> None:
    make_family("llama", tie_word_embeddings=True, vocab_size=vocab_size).save_pretrained(tmp_path)
    arguments = model_args(tmp_path, quantization_bit=8, quantization_method="fp8")

    model: Any = load_model(tiny_tokenizer, arguments, tuning("lora"), True, dtype=FLOAT32).get_base_model()

    assert model.lm_head.weight is model.model.embed_tokens.weight
    maps = Path("/proc/self/maps")
    if maps.is_file():
        assert (str(tmp_path) in maps.read_text(encoding="utf-8")) == (vocab_size == 4096)


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc only")
def test_holes_in_the_heap_go_back_to_the_system() -> None:
    def resident() -> int:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("RssAnon:")[1].split()[0]) * 1024

    size = 100_000  # below the size that gets pages of its own
    blocks = [bytearray(b"x") * size for _ in range(800)]
    kept = blocks[::8]
    del blocks
    before = resident()

    trim_heap()

    assert before - resident() > 40 * 2**20
    assert all(len(block) == size for block in kept)
