"""Checkpoints that are quantized already, made here: what they hold is what is loaded, and an adapter learns on it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from model_making import load, logits, tuning
from safetensors.torch import load_file, save_file
from torch import Tensor


FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The numbers of the format E2M1; the highest bit is the sign."""


def learns(folder: Path, method: str = "lora") -> None:
    """A step downhill lowers the loss."""
    ids = torch.arange(3, 35)[None]
    model = load(folder, tuning(method))
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=5e-3)
    told: list[float] = []
    for _ in range(4):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        told.append(float(loss.detach()))
    assert told[-1] < told[0]


def rewrite(source: Path, target: Path, tensors: dict[str, Tensor], quantization: dict[str, Any]) -> Path:
    """Copy a model with other tensors, and a note about them in its config."""
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            (target / path.name).write_bytes(path.read_bytes())
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({**config, "quantization_config": quantization})
    (target / "config.json").write_text(text, encoding="utf-8")
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("method", ["lora", "full"])
def test_fp8_with_a_scale_for_each_block(method: str, wide_llama_dir: Path, tmp_path: Path) -> None:
    tensors, expected = dict[str, Tensor](), dict[str, Tensor]()
    for name, weight in load_file(wide_llama_dir / "model.safetensors").items():
        if "_proj" not in name:
            tensors[name] = expected[name] = weight
            continue
        blocks = weight.unflatten(0, (-1, 32)).unflatten(2, (-1, 32))
        scale = blocks.abs().amax(dim=(1, 3)) / 448
        codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        tensors[name], tensors[f"{name}_scale_inv"] = codes.flatten(2).flatten(0, 1).contiguous(), scale
        expected[name] = (codes.float() * scale[:, None, :, None]).flatten(2).flatten(0, 1)
    note = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 32]}
    folder = rewrite(wide_llama_dir, tmp_path / "fp8", tensors, note)

    found = load(folder).state_dict()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name].float(), weight, rtol=1e-2, atol=1e-4)
    learns(folder, method)


def test_mxfp4_experts(tiny_tokenizer: Any, tmp_path: Path) -> None:
    """As in gpt-oss: 32 numbers of 4 bits share an exponent, for the experts of a mixture."""
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        eos_token_id=tiny_tokenizer.eos_token_id,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    plain = tmp_path / "plain"
    GptOssForCausalLM(config).save_pretrained(plain)
    tiny_tokenizer.save_pretrained(plain)
    generator = torch.Generator().manual_seed(0)
    tensors, expected = dict[str, Tensor](), dict[str, Tensor]()
    for name, weight in load_file(plain / "model.safetensors").items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[name] = weight
            continue
        experts, width, out = weight.shape
        codes = torch.randint(0, 16, (experts, out, width // 32, 32), generator=generator, dtype=torch.uint8)
        exponents = torch.randint(-7, -4, (experts, out, width // 32), generator=generator)
        tensors[f"{name}_blocks"] = codes[..., ::2] | codes[..., 1::2] << 4
        tensors[f"{name}_scales"] = (exponents + 127).to(torch.uint8)
        values = torch.tensor([*FP4, *(-number for number in FP4)])[codes.long()]
        expected[name] = (values * 2.0 ** exponents[..., None]).flatten(2).transpose(1, 2)
    assert expected
    folder = rewrite(plain, tmp_path / "mxfp4", tensors, {"quant_method": "mxfp4"})

    found = load(folder).state_dict()
    for name, weight in expected.items():
        assert torch.equal(found[name].float(), weight), name
    learns(folder)


@pytest.mark.quantized
@pytest.mark.parametrize("method", ["lora", "full"])
def test_compressed_tensors_in_4_bits(method: str, wide_llama_dir: Path, tmp_path: Path) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    tensors, expected = dict[str, Tensor](), dict[str, Tensor]()
    for name, weight in load_file(wide_llama_dir / "model.safetensors").items():
        if "_proj" not in name:
            tensors[name] = expected[name] = weight
            continue
        groups = weight.unflatten(1, (-1, 32))
        scale = groups.abs().amax(2) / 7
        codes = (groups / scale[..., None]).round().clamp(-8, 7)
        stem = name.removesuffix(".weight")
        tensors[f"{stem}.weight_packed"] = pack_to_int32(codes.flatten(1).to(torch.int8), 4)
        tensors[f"{stem}.weight_scale"], tensors[f"{stem}.weight_shape"] = scale, torch.tensor(weight.shape)
        expected[name] = (codes * scale[..., None]).flatten(1)
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    note = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }
    folder = rewrite(wide_llama_dir, tmp_path / "ct", tensors, note)
    whole = load(wide_llama_dir)
    whole.load_state_dict(expected)
    torch.testing.assert_close(logits(load(folder)), logits(whole), rtol=1e-3, atol=1e-3)
    learns(folder, method)
