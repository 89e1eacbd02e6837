"""compile_layers: the same losses, gradients and files with and without, and when it is chosen."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from families import family_model
from safetensors.torch import load_file
from torch.testing import assert_close

from llamafactory.data.batch import sequence_bounds
from llamafactory.model.fused.passes import fuse_parts
from llamafactory.model.model_utils import compilation
from llamafactory.model.model_utils.attention import use_flat_attention
from llamafactory.model.model_utils.compilation import choose_compilation, compile_layers, missing_compiler


LENGTHS = ([9, 5], [12, 3])


@pytest.fixture(autouse=True)
def forget_compiled_code() -> Iterator[None]:
    yield
    torch.compiler.reset()


def make(method: str, *, is_checkpointed: bool) -> Any:
    """A tiny model with our attention and, under LoRA with a drawn B, our fused modules."""
    model = family_model("llama", "sdpa", num_hidden_layers=1)
    if method == "lora":
        from peft import LoraConfig, get_peft_model

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
            model: Any = get_peft_model(model, config)
    use_flat_attention(model, "auto")
    assert fuse_parts(model).fused["norms"]
    if is_checkpointed:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model.train()


def losses_and_gradients(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Sums of squared logits for flat batches of several lengths, and their gradients."""
    losses: list[torch.Tensor] = []
    for seed, lengths in enumerate(LENGTHS):
        ids = torch.randint(3, 300, (1, sum(lengths)), generator=torch.Generator().manual_seed(seed))
        positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
        inputs = {"input_ids": ids, "position_ids": positions, **sequence_bounds(positions)}
        loss = model(**inputs, use_cache=False).logits.square().sum()
        loss.backward()
        losses.append(loss.detach())
    grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return torch.stack(losses), grads


def assert_unchanged(folder: Path, backend: str, method: str, *, is_checkpointed: bool) -> None:
    plain, compiled = (make(method, is_checkpointed=is_checkpointed) for _ in range(2))
    assert compile_layers(compiled, backend) == 1

    expected, found = losses_and_gradients(plain), losses_and_gradients(compiled)

    assert_close(found[0], expected[0], rtol=1e-5, atol=0)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-4)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for name, model in (("plain", plain), ("compiled", compiled)):
        model.save_pretrained(folder / name)
    file = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    assert load_file(folder / "compiled" / file).keys() == load_file(folder / "plain" / file).keys()


@pytest.mark.parametrize(
    ("method", "is_checkpointed"),
    [
        ("full", True),
        pytest.param("full", False, marks=pytest.mark.slow),
        pytest.param("lora", True, marks=pytest.mark.slow),
        pytest.param("lora", False, marks=pytest.mark.slow),
    ],
)
def test_compiled_layers_compute_and_save_the_same(tmp_path: Path, method: str, is_checkpointed: bool) -> None:
    assert_unchanged(tmp_path, "eager", method, is_checkpointed=is_checkpointed)


@pytest.mark.slow
@pytest.mark.skipif(missing_compiler("cpu") is not None, reason="needs a C++ compiler")
def test_the_real_compiler_computes_and_saves_the_same(tmp_path: Path) -> None:
    assert_unchanged(tmp_path, "inductor", "lora", is_checkpointed=False)


@pytest.mark.parametrize(
    ("asked", "kind", "num_tokens", "is_steady", "is_on"),
    [
        (True, "cpu", 10, True, True),
        (True, "cuda", 10, False, True),
        (False, "cuda", 10**15, True, False),
        (None, "cpu", 10**15, True, False),
        (None, "cuda", 10**6, True, False),
        (None, "cuda", 10**15, True, True),
        (None, "cuda", 10**15, False, False),
    ],
)
def test_it_is_chosen_where_it_repays(
    asked: bool | None,
    kind: Any,
    num_tokens: int,
    is_steady: bool,
    is_on: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compilation, "missing_compiler", lambda kind: None)

    choice = choose_compilation(family_model("llama"), asked, kind, num_tokens, is_steady=is_steady)

    assert choice.is_on is is_on


def test_a_missing_compiler_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)

    choice = choose_compilation(family_model("llama"), True, "cpu", 10, is_steady=True)

    assert not choice.is_on
    assert "no C++ compiler was found" in choice.reason
