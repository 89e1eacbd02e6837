"""Training on weights in few bits: train, save, resume, talk, export the 16-bit merge."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file


pytestmark = pytest.mark.quantized

BITS = {
    "4": {"quantization_bit": 4},
    "4-fp4": {"quantization_bit": 4, "quantization_type": "fp4", "double_quantization": False},
    "8": {"quantization_bit": 8},
    "torchao-8": {"quantization_bit": 8, "quantization_method": "torchao"},
    "torchao-4": {"quantization_bit": 4, "quantization_method": "torchao"},
    "hqq-4": {"quantization_bit": 4, "quantization_method": "hqq"},
    "hqq-3": {"quantization_bit": 3, "quantization_method": "hqq"},
    "fp8": {"quantization_bit": 8, "quantization_method": "fp8"},
}


def keys(model: Path, data: Path, output: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model_name_or_path": str(model),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 4,
        "dataset": "tiny_alpaca",
        "dataset_dir": str(data),
        "cutoff_len": 96,
        "output_dir": str(output),
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "max_steps": 6,
        "save_steps": 3,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        **changes,
    }


def losses(folder: Path) -> list[float]:
    lines = (folder / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


@pytest.mark.parametrize("name", BITS)
def test_n36_n40_train_resume_talk_and_export(
    name: str, wide_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path
) -> None:
    from llamafactory.chat import ChatModel
    from llamafactory.train.tuner import export_model, run_exp

    quantized = BITS[name]
    run_exp(keys(wide_llama_dir, demo_dataset_dir, tmp_path / "whole", **quantized))
    told = losses(tmp_path / "whole")
    assert told[-1] < told[0]

    checkpoint = str(tmp_path / "whole" / "checkpoint-3")
    again = keys(wide_llama_dir, demo_dataset_dir, tmp_path / "again", **quantized)
    run_exp({**again, "resume_from_checkpoint": checkpoint})
    whole = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    resumed = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)

    loading = {
        "model_name_or_path": str(wide_llama_dir),
        "adapter_name_or_path": str(tmp_path / "whole"),
        "finetuning_type": "lora",
    }
    chat = ChatModel({**loading, **quantized, "max_new_tokens": 3})
    assert chat.chat([{"role": "user", "content": "Count to two."}])

    export_model({**loading, **quantized, "export_dir": str(tmp_path / "merged"), "infer_dtype": "float32"})
    assert_is_merge_of_the_plain_base(tmp_path / "merged", wide_llama_dir, whole)


def assert_is_merge_of_the_plain_base(merged: Path, base: Path, adapter: dict[str, torch.Tensor]) -> None:
    """Every adapted weight is W + 2 B A over the unpacked base, the others are the base's."""
    out, plain = load_file(merged / "model.safetensors"), load_file(base / "model.safetensors")
    num_adapted = 0
    for name, weight in plain.items():
        a = adapter.get(f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight")
        if a is None:
            assert torch.equal(out[name], weight), name
            continue
        num_adapted += 1
        b = adapter[f"base_model.model.{name.removesuffix('.weight')}.lora_B.weight"]
        torch.testing.assert_close(out[name], weight + 2 * b @ a, rtol=1e-5, atol=1e-6)
    assert num_adapted == 14


@pytest.mark.parametrize(("name", "is_fused"), [("4", True), ("hqq-4", True), ("8", False), ("torchao-8", False)])
def test_adapters_are_fused_where_weights_are_unpacked_for_each_product(
    name: str, is_fused: bool, wide_llama_dir: Path
) -> None:
    from llamafactory.model.fused.linear import FusedLinear
    from llamafactory.model.fused.replacement import replacements

    model = load(wide_llama_dir, **BITS[name])

    kinds = {type(item) for item in replacements(model)}
    assert (FusedLinear in kinds) is is_fused
    assert kinds  # norms and rotations are replaced in any case


def gradients(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("bits", [4, 8])
def test_n37_an_evaluation_leaves_the_gradients_as_they_were(bits: int, wide_llama_dir: Path) -> None:
    model = load(wide_llama_dir, quantization_bit=bits)
    ids = torch.arange(3, 35)[None]
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    before = gradients(model, ids)
    model.eval()
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    after = gradients(model, ids)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(bool(grad.any()) for grad in before.values())


def test_n37_gradients_are_those_of_the_unpacked_weights(wide_llama_dir: Path) -> None:
    """4-bit weights written out in full give the same gradients through the same adapter."""
    import bitsandbytes

    packed = load(wide_llama_dir, quantization_bit=4, fused_modules=False)
    ids = torch.arange(3, 35)[None]
    for name, weight in packed.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    plain = load(wide_llama_dir, fused_modules=False)
    full = dict(plain.named_parameters())
    for name, weight in packed.named_parameters():
        state = getattr(weight, "quant_state", None)
        value = weight if state is None else bitsandbytes.functional.dequantize_4bit(weight.data, state)
        full[name].data = value.detach().clone()
    ours, theirs = gradients(packed, ids), gradients(plain, ids)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-6)


def test_parameters_are_counted_as_weights_not_as_bytes(wide_llama_dir: Path) -> None:
    from llamafactory.model.model_utils.parameters import count_parameters

    plain, packed = load(wide_llama_dir), load(wide_llama_dir, quantization_bit=4)
    assert count_parameters(packed) == count_parameters(plain)


def test_quantized_weights_do_not_train_themselves(wide_llama_dir: Path, tmp_path: Path) -> None:
    """A checkpoint that is packed already says so when it is loaded; the rules cannot know."""
    from llamafactory.extras.errors import UserError

    load(wide_llama_dir, quantization_bit=4, is_trainable=False).save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(wide_llama_dir).save_pretrained(tmp_path)
    assert load(tmp_path).is_quantized
    with pytest.raises(UserError, match="finetuning_type full cannot train; use lora"):
        load(tmp_path, finetuning_type="full")
    with pytest.raises(UserError, match="quantized already"):
        load(tmp_path, quantization_bit=4)


def load(folder: Path, **changes: Any) -> Any:
    from transformers import AutoTokenizer

    from llamafactory.hparams import FinetuningArguments, ModelArguments
    from llamafactory.model import load_model
    from llamafactory.model.dtype import DtypeChoice

    whole = DtypeChoice(frozen=torch.float32, trainable=torch.float32, autocast=None, reason="tests")
    method, is_trainable = changes.pop("finetuning_type", "lora"), changes.pop("is_trainable", True)
    args = ModelArguments(model_name_or_path=str(folder), **changes)
    finetuning = FinetuningArguments(finetuning_type=method, lora_rank=4)
    return load_model(AutoTokenizer.from_pretrained(folder), args, finetuning, is_trainable=is_trainable, dtype=whole)


@pytest.mark.parametrize("sharding", [{}, {"fsdp": "full_shard auto_wrap"}])
def test_packed_weights_name_the_format_of_the_others_where_weights_are_sharded(
    sharding: dict[str, Any], wide_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path
) -> None:
    """FSDP joins the weights of one format, so bytes of their own format would have no place."""
    from transformers import AutoConfig

    from llamafactory.extras.device import device_facts
    from llamafactory.hparams import get_train_args
    from llamafactory.model.dtype import choose_dtype, training_flags
    from llamafactory.model.quantization.choosing import choose_quantizer

    config = keys(wide_llama_dir, demo_dataset_dir, tmp_path, quantization_bit=4, bf16=True, **sharding)
    model, _, training, finetuning, _ = get_train_args(config)
    dtypes = choose_dtype(training_flags(training, finetuning), device_facts())
    quantizer = choose_quantizer(AutoConfig.from_pretrained(wide_llama_dir), model, finetuning, dtypes)
    assert quantizer is not None
    assert quantizer.config.bnb_4bit_quant_storage == (torch.bfloat16 if sharding else torch.uint8)
    assert quantizer.config.bnb_4bit_compute_dtype == torch.bfloat16


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_reference_of_dpo_may_be_packed(
    method: str, wide_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path
) -> None:
    from llamafactory.train.tuner import run_exp

    changes = {"stage": "dpo", "dataset": "tiny_pairs", "finetuning_type": method, "learning_rate": 1e-3}
    config = keys(wide_llama_dir, demo_dataset_dir, tmp_path, **changes)
    run_exp({**config, "ref_model": str(wide_llama_dir), "ref_model_quantization_bit": 4})
    assert 0.4 < losses(tmp_path)[0] < 1.0
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_reward_model_of_ppo_may_be_packed(
    method: str, wide_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path
) -> None:
    """The judge is a whole reward model in 4 bits; what it says is what its whole self says, nearly."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from llamafactory.train.tuner import run_exp

    torch.manual_seed(1)
    judge = AutoModelForSequenceClassification.from_pretrained(wide_llama_dir, num_labels=1, dtype=torch.float32)
    judge.save_pretrained(tmp_path / "judge")
    AutoTokenizer.from_pretrained(wide_llama_dir).save_pretrained(tmp_path / "judge")
    config = keys(wide_llama_dir, demo_dataset_dir, tmp_path, stage="ppo", finetuning_type=method, max_new_tokens=8)
    config |= {"reward_model": str(tmp_path / "judge"), "reward_model_type": "full", "max_steps": 2}
    config |= {"template": "chatml", "save_strategy": "no"}
    rewards = {}
    for bits in (None, 4):
        output = tmp_path / f"out-{bits}"
        run_exp({**config, "reward_model_quantization_bit": bits, "output_dir": str(output)})
        lines = (output / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
        rewards[bits] = next(entry["reward"] for entry in map(json.loads, lines) if "reward" in entry)
    assert rewards[4] != rewards[None]
    assert rewards[4] == pytest.approx(rewards[None], abs=0.1)


@pytest.mark.parametrize("quantized", [BITS["4"], BITS["8"], BITS["hqq-4"]], ids=["bnb-4", "bnb-8", "hqq-4"])
def test_qoft_learns_on_packed_weights_and_is_merged_into_the_whole_ones(
    quantized: dict[str, Any], wide_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path
) -> None:
    from llamafactory.train.tuner import export_model, run_exp

    config = keys(wide_llama_dir, demo_dataset_dir, tmp_path / "run", **quantized)
    run_exp({**config, "finetuning_type": "oft", "oft_block_size": 16, "max_steps": 4})
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]
    loading = {"model_name_or_path": str(wide_llama_dir), "adapter_name_or_path": str(tmp_path / "run")}
    export_model({**loading, "finetuning_type": "oft", **quantized, "export_dir": str(tmp_path / "merged")})
    merged, plain = (load_file(path / "model.safetensors") for path in (tmp_path / "merged", wide_llama_dir))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(merged[name], plain[name])
    torch.testing.assert_close(merged[name].norm(), plain[name].norm(), rtol=1e-3, atol=0)  # it only turns


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 8])
def test_hqq_is_nearer_to_the_weights_with_each_bit_and_its_gradient_is_the_unpacked_ones(
    bits: int, wide_llama_dir: Path
) -> None:
    from llamafactory.model.quantization.hqq import HqqLinear

    torch.manual_seed(0)
    plain = torch.nn.Linear(64, 32)
    whole = plain.weight.detach().clone()
    layer = HqqLinear(plain, bits)
    x = torch.randn(3, 64, requires_grad=True)
    layer(x).square().sum().backward()
    ours, x.grad = x.grad, None
    (x @ layer.unpack(torch.float32).t() + plain.bias).square().sum().backward()
    torch.testing.assert_close(ours, x.grad)
    limit = {1: 0.95, 2: 0.35, 3: 0.16, 4: 0.08, 5: 0.04, 6: 0.02, 8: 0.006}[bits]
    assert float((layer.unpack(torch.float32) - whole).norm() / whole.norm()) < limit
    assert layer.weight.numel() * layer.weight.element_size() <= whole.numel() * max(bits, 1) / 8 * 1.7


@pytest.mark.parametrize(("method", "bits"), [("bnb", 4), ("bnb", 8), ("torchao", 4), ("torchao", 8)])
def test_an_export_in_few_bits_trains_and_answers(
    method: str, bits: int, wide_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path
) -> None:
    from llamafactory.chat import ChatModel
    from llamafactory.train.tuner import export_model, run_exp

    packed = tmp_path / "packed"
    export_model(
        {
            "model_name_or_path": str(wide_llama_dir),
            "export_dir": str(packed),
            "export_quantization_bit": bits,
            "export_quantization_method": method,
        }
    )
    assert ChatModel({"model_name_or_path": str(packed), "max_new_tokens": 3}).chat([{"role": "user", "content": "1"}])
    run_exp(keys(packed, demo_dataset_dir, tmp_path / "run", max_steps=3))
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]


def test_the_weights_of_an_fp8_base_are_told_to_the_byte(wide_llama_dir: Path) -> None:
    from llamafactory.model.quantization.sizes import Packing, weight_bytes

    plain = load(wide_llama_dir)
    packed = load(wide_llama_dir, quantization_bit=8, quantization_method="fp8")
    assert weight_bytes(plain, Packing("fp8", 8)) == weight_bytes(packed)
