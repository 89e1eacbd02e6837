"""The memory estimate: against what autograd really keeps, and what is decided by it."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_making import FLOAT32, load, model_args, tuning

from llamafactory.data.batch_plan import BatchSize
from llamafactory.extras import cores
from llamafactory.hparams import (
    DataArguments,
    FinetuningArguments,
    GeneratingArguments,
    ModelArguments,
    TrainingArguments,
)
from llamafactory.model.fused.replacement import restore_modules
from llamafactory.model.memory import StepShape, activation_bytes, estimate_step, free_main_memory
from llamafactory.model.model_utils.checkpointing import checkpoint_if_needed
from llamafactory.model.quantization.sizes import Packing
from llamafactory.train.choices import most_tokens, settle_step
from llamafactory.train.stage import RunArguments


LENGTHS = (64, 128)


def wide_config(num_layers: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
    )


def kept_bytes(model: Any, length: int, autocast: bool) -> int:
    """Bytes that autograd holds after a forward pass, weights left out."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    held: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in weights:
            held[address] = tensor
        return tensor

    ids = torch.arange(length).remainder(60).unsqueeze(0)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        output = model(input_ids=ids, use_cache=False, logits_to_keep=1)
    del output
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


def kept_per_token(make: Callable[[int], Any], autocast: bool) -> float:
    """Bytes that one more layer keeps for one more token."""

    def slope(num_layers: int) -> float:
        model = make(num_layers)
        short, long = (kept_bytes(model, length, autocast) for length in LENGTHS)
        return (long - short) / (LENGTHS[1] - LENGTHS[0])

    return slope(3) - slope(2)


@pytest.mark.parametrize("is_fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("method", ["lora", "lora on 8 bits", "full"])
@pytest.mark.parametrize("autocast", [True, False], ids=["bf16", "fp32"])
def test_a_layer_keeps_what_the_estimate_says(
    tmp_path: Path, tiny_tokenizer: Any, method: str, autocast: bool, is_fused: bool
) -> None:
    from transformers import LlamaForCausalLM

    from llamafactory.model import load_model

    packing = Packing("fp8", 8) if method == "lora on 8 bits" else None
    packed = {"quantization_bit": 8, "quantization_method": "fp8"} if packing else {}
    method = method.split()[0]
    frozen = torch.bfloat16 if autocast and method == "lora" else torch.float32

    def make(num_layers: int) -> Any:
        folder = tmp_path / str(num_layers)
        config = wide_config(num_layers)
        config.vocab_size = len(tiny_tokenizer)
        LlamaForCausalLM(config).save_pretrained(folder)
        args = model_args(folder, fused_modules=is_fused, **packed)
        dtype = replace(FLOAT32, frozen=frozen, autocast="bf16" if autocast else None)
        return load_model(tiny_tokenizer, args, tuning(method, lora_rank=2), True, dtype=dtype)

    measured = kept_per_token(make, autocast)

    compute_dtype = torch.bfloat16 if autocast else torch.float32
    shape = StepShape(tokens=1000, compute_dtype=compute_dtype, is_fused=is_fused, packing=packing)
    three, two = (
        activation_bytes(wide_config(count), shape, is_frozen=method == "lora") / shape.tokens for count in (3, 2)
    )
    assert three - two == pytest.approx(measured, rel=0.15)


def test_weights_gradients_and_optimizer_are_counted_exactly(tiny_llama_dir: Path) -> None:
    model = load(tiny_llama_dir, tuning("full"))
    numbers = sum(weight.numel() for weight in model.parameters())

    estimate = estimate_step(model, StepShape(tokens=8, compute_dtype=torch.float32))
    sharded = estimate_step(model, StepShape(tokens=8, compute_dtype=torch.float32, num_shards=4))

    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    assert estimate.weights - buffers == estimate.gradients == 4 * numbers
    assert estimate.optimizer == 8 * numbers
    assert estimate.total - estimate.beyond_weights == estimate.weights
    assert sharded.weights == estimate.weights // 4


def test_an_adapter_needs_gradients_for_itself_only(tiny_llama_dir: Path) -> None:
    model = load(tiny_llama_dir, tuning("lora"))
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)

    estimate = estimate_step(model, StepShape(tokens=8, compute_dtype=torch.float32))

    assert estimate.gradients == 4 * trained


def test_a_model_without_weights_can_be_estimated(tiny_llama: Callable[[], Any]) -> None:
    model, shape = tiny_llama().to("meta"), StepShape(tokens=64)
    model.tie_weights()  # moving to another device makes two of a tied weight

    assert estimate_step(model, shape) == estimate_step(tiny_llama(), shape)


def test_checkpointing_keeps_less(tiny_llama: Callable[[], Any]) -> None:
    model = tiny_llama()
    shape = StepShape(tokens=4096)

    kept, recomputed = (
        estimate_step(model, replace(shape, checkpointed_layers=layers)).activations for layers in (0, 2)
    )

    assert recomputed < kept


@pytest.mark.parametrize(("free", "is_on"), [(2**40, False), (2**20, True)])
def test_checkpointing_is_on_where_the_memory_needs_it(tiny_llama_dir: Path, free: int, is_on: bool) -> None:
    model = load(tiny_llama_dir, tuning("lora"))
    shape = StepShape(tokens=4096)

    choice = checkpoint_if_needed(model, shape, model_args(tiny_llama_dir), on_device=False, free=free)

    assert choice.is_on == is_on == model.is_gradient_checkpointing
    assert "4096 tokens" in choice.reason


@pytest.mark.parametrize(("given", "is_on"), [(None, False), (True, False), (False, True)])
def test_the_users_word_decides_about_checkpointing(
    tiny_llama_dir: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    given: bool | None,
    is_on: bool,
) -> None:
    arguments = run_arguments(tiny_llama_dir, disable_gradient_checkpointing=given)
    model = load(tiny_llama_dir, tuning("lora"), disable_gradient_checkpointing=given)
    monkeypatch.setattr(logging.getLogger("llamafactory"), "propagate", False)
    monkeypatch.setattr(logging.getLogger("llamafactory"), "handlers", [caplog.handler])

    with caplog.at_level(logging.INFO, logger="llamafactory"):
        settle_step(model, arguments, rows(3, 5), BatchSize(num_rows=2), FLOAT32)

    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("A step:")]
    assert model.is_gradient_checkpointing == is_on
    assert len(lines) == 1
    assert "fused AdamW" in lines[0]
    assert "float32 products" in lines[0]
    assert ("as asked" in lines[0]) == (given is not None)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (BatchSize(num_rows=2), 2 * 9),
        (BatchSize(num_rows=2, pads=False), 9 + 5),
        (BatchSize(max_tokens=12), 12),
        (BatchSize(max_tokens=4), 9),
    ],
)
def test_the_largest_batch_is_told_from_the_rows(tiny_llama_dir: Path, size: BatchSize, expected: int) -> None:
    arguments = run_arguments(tiny_llama_dir)

    assert most_tokens(rows(3, 9, 5), size, arguments) == expected


def test_the_largest_batch_of_a_stream_is_told_from_the_cutoff(tiny_llama_dir: Path) -> None:
    arguments = run_arguments(tiny_llama_dir)

    assert most_tokens(None, BatchSize(num_rows=3), arguments) == 3 * arguments.data.cutoff_len


def test_a_container_has_less_memory_than_its_machine(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    assert free_main_memory(tmp_path) == 8000 * 1024

    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("1000\n")
    assert free_main_memory(tmp_path) == 8000 * 1024

    (group / "memory.max").write_text("5000000\n")
    assert free_main_memory(tmp_path) == 4_999_000


def test_threads_are_physical_cores_within_the_containers_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for number in range(8):
        file = tmp_path / cores.TOPOLOGY.format(number)
        file.parent.mkdir(parents=True)
        file.write_text(f"{number % 4},{number % 4 + 4}\n")
    assert cores.usable_cores(tmp_path) == 4

    quota = tmp_path / cores.QUOTA
    quota.parent.mkdir(parents=True)
    quota.write_text("200000 100000\n")
    assert cores.usable_cores(tmp_path) == 2

    quota.write_text("max 100000\n")
    assert cores.usable_cores(tmp_path) == 4


def test_the_users_number_of_threads_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[int] = []
    monkeypatch.setattr(cores, "usable_cores", lambda: 2)

    monkeypatch.setenv(cores.THREADS, "8")
    assert cores.settle_threads(numbers.append, 8) == 8

    monkeypatch.delenv(cores.THREADS)
    assert cores.settle_threads(numbers.append, 8) == 2
    assert cores.settle_threads(numbers.append, 1) == 1
    assert numbers == [2]


def rows(*lengths: int) -> list[dict[str, list[int]]]:
    return [{"input_ids": [1] * length, "labels": [1] * length} for length in lengths]


def run_arguments(model: Path, **values: Any) -> RunArguments:
    return RunArguments(
        ModelArguments(model_name_or_path=str(model), **values),
        DataArguments(),
        TrainingArguments(output_dir="unused", do_train=True),
        FinetuningArguments(),
        GeneratingArguments(),
    )


def test_replacements_can_be_told(tiny_llama_dir: Path) -> None:
    """What the driver looks at to know which table holds."""
    from llamafactory.model.fused.replacement import replacements

    model = load(tiny_llama_dir, tuning("lora"))

    assert any(True for _ in replacements(model))
    assert not any(True for _ in replacements(restore_modules(model)))
