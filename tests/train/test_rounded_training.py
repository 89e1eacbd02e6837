"""Training that feels rounding: QAT with torchao, and 8-bit products (emulated: a CPU has none)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from model_making import load, logits, randomize, tuning
from safetensors.torch import load_file

from llamafactory.extras.errors import UserError


pytestmark = pytest.mark.quantized


def torchao(bits: int) -> dict[str, Any]:
    return {"quantization_bit": bits, "quantization_method": "torchao"}


@pytest.mark.parametrize("bits", [4, 8])
def test_packing_after_qat_loses_nothing(bits: int, wide_llama_dir: Path, tmp_path: Path) -> None:
    trained = randomize(load(wide_llama_dir, tuning("full", qat_bits=bits)), scale=0.05).eval()
    felt = logits(trained)
    trained.save_pretrained(tmp_path)
    load_tokenizer_of(wide_llama_dir).save_pretrained(tmp_path)
    plain = logits(load(tmp_path))
    packed = logits(load(tmp_path, **torchao(bits)))
    torch.testing.assert_close(packed, felt, rtol=1e-4, atol=1e-4 * float(felt.abs().max()))
    assert float((plain - felt).norm()) > 10 * float((packed - felt).norm())


@pytest.mark.parametrize("bits", [4, 8])
def test_packing_a_merged_adapter_after_qat_loses_nothing(bits: int, wide_llama_dir: Path, tmp_path: Path) -> None:
    """What is rounded in training is the sum, W + s B A, from which the export is packed."""
    trained = randomize(load(wide_llama_dir, tuning(lora_rank=4, qat_bits=bits))).eval()
    felt = logits(trained)
    trained.save_pretrained(tmp_path / "adapter")
    merged = load(wide_llama_dir, adapter_name_or_path=(str(tmp_path / "adapter"),))
    merged.save_pretrained(tmp_path / "merged")
    load_tokenizer_of(wide_llama_dir).save_pretrained(tmp_path / "merged")
    packed = logits(load(tmp_path / "merged", **torchao(bits)))
    gap = (packed - felt).norm() / felt.norm()
    assert float(gap) < 5e-3  # a number between two points may go either way
    assert float((logits(merged) - felt).norm()) > 5 * float((packed - felt).norm())


def test_the_gradient_goes_through_the_rounding_as_if_it_were_not_there(wide_llama_dir: Path) -> None:
    """With 8 bits the rounded sum is so near to the whole one that the gradients are."""
    ids = torch.arange(3, 35)[None]
    found: list[dict[str, torch.Tensor]] = []
    for bits in (None, 8):
        model = randomize(load(wide_llama_dir, tuning(lora_rank=4, qat_bits=bits)))
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        found.append({name: w.grad for name, w in model.named_parameters() if w.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, plain in found[0].items():
        assert float((found[1][name] - plain).norm() / plain.norm()) < 0.25, name


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_qat_run_learns_resumes_bit_for_bit_and_saves_plain_names(
    method: str, wide_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path
) -> None:
    from llamafactory.train.tuner import run_exp

    config = keys(wide_llama_dir, demo_dataset_dir, finetuning_type=method, qat_bits=4)
    run_exp({**config, "output_dir": str(tmp_path / "whole")})
    checkpoint = str(tmp_path / "whole" / "checkpoint-3")
    run_exp({**config, "output_dir": str(tmp_path / "again"), "resume_from_checkpoint": checkpoint})
    file = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    whole, again = (load_file(tmp_path / name / file) for name in ("whole", "again"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    lines = (tmp_path / "whole" / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
    told = [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]
    assert told[-1] < told[0]
    if method == "full":
        assert whole.keys() == load_file(wide_llama_dir / "model.safetensors").keys()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_8_bit_products_are_near_the_whole_ones_and_learn(method: str, wide_llama_dir: Path) -> None:
    from llamafactory.model.quantization.float8_training import to_float8_training

    ids = torch.arange(3, 35)[None]
    plain, rounded = (randomize(load(wide_llama_dir, tuning(method)), scale=0.05) for _ in range(2))
    names = set(rounded.state_dict())
    assert to_float8_training(rounded, is_emulated=True) == 14
    assert set(rounded.state_dict()) == names
    for model in (plain, rounded):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert float((logits(rounded) - logits(plain)).norm() / logits(plain).norm()) < 0.1
    for (name, one), (_, two) in zip(plain.named_parameters(), rounded.named_parameters(), strict=True):
        if one.grad is not None and one.dim() > 1:
            assert float((one.grad - two.grad).norm() / one.grad.norm()) < 0.4, name
    optimizer = torch.optim.AdamW([w for w in rounded.parameters() if w.requires_grad], lr=1e-2)
    told: list[float] = []
    for _ in range(6):
        loss = rounded(input_ids=ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        told.append(float(loss.detach()))
    assert told[-1] < told[0] - 0.1


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_rounding_keeps_for_the_backward_pass_is_in_the_estimate(
    bits: int, method: str, wide_llama_dir: Path
) -> None:
    """With one token there is next to nothing else to be kept."""
    from llamafactory.model.memory import StepShape, estimate_step

    plain, rounded = (load(wide_llama_dir, tuning(method, qat_bits=value)) for value in (None, bits))
    own = {weight.untyped_storage().data_ptr() for weight in rounded.parameters()}
    held: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        rounded(input_ids=torch.tensor([[5]]), use_cache=False)
    kept = sum(tensor.untyped_storage().nbytes() for tensor in held.values() if tensor.numel() > 512)
    shape = StepShape(tokens=1, compute_dtype=torch.float32, is_rounded=True)
    assert estimate_step(plain, shape).copies == pytest.approx(kept, rel=0.1)


def test_fp8_without_8_bit_products_is_refused_in_one_sentence(
    wide_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path
) -> None:
    from llamafactory.train.tuner import run_exp

    config = keys(wide_llama_dir, demo_dataset_dir, fp8=True, output_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"needs an NVIDIA card of compute capability 8\.9"):
        run_exp(config)


def keys(model: Path, data: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model_name_or_path": str(model),
        "do_train": True,
        "lora_rank": 4,
        "dataset": "tiny_alpaca",
        "dataset_dir": str(data),
        "cutoff_len": 96,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "max_steps": 6,
        "save_steps": 3,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        **changes,
    }


def load_tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
