"""Replaced modules compute what the model's own do (N36, N37): every family, every way of calling them."""

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from llamafactory.model.fused import passes, restore_modules
from llamafactory.model.fused.blocks import FusedAttention
from llamafactory.model.fused.linear import FusedLinear, projection_of
from llamafactory.model.fused.passes import fuse_parts
from llamafactory.model.fused.replacement import replacements
from llamafactory.model.model_utils.flat_attention import FLAT_ATTENTION, register_flat_attention


FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "granite")
LAYERS = 2


def make_family(family: str, **changes: Any) -> Any:
    """A tiny model of a family with weights that are nowhere special."""
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        **({"query_pre_attn_scalar": 8} if family in ("gemma2", "gemma3_text") else {}),
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**sizes, **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return redraw(model).train()


def redraw(model: Any) -> Any:
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model


def adapted(model: Any, **changes: Any) -> PeftModel:
    config = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **changes}
    peft_model = get_peft_model(model, LoraConfig(**config))
    generator = torch.Generator().manual_seed(5)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return peft_model.train()  # pyright: ignore[reportReturnType]


def inputs() -> dict[str, Tensor]:
    ids = torch.randint(1, 64, (2, 12), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids}


def step(model: Any) -> tuple[float, dict[str, Tensor]]:
    """Loss and all gradients."""
    model.zero_grad()
    loss = model(**inputs(), use_cache=False).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(model: Any, reference: tuple[float, dict[str, Tensor]], limit: float = 1e-5) -> None:
    loss, grads = step(model)
    assert loss == pytest.approx(reference[0], rel=limit)
    assert grads.keys() == reference[1].keys()
    scale = max(float(grad.abs().max()) for grad in reference[1].values())
    for name, grad in grads.items():
        torch.testing.assert_close(grad, reference[1][name], rtol=0, atol=limit * scale, msg=name)


def kinds(model: nn.Module) -> dict[str, int]:
    counts: dict[str, int] = {}
    for replacement in replacements(model):
        counts[type(replacement).__name__] = counts.get(type(replacement).__name__, 0) + 1
    return counts


@contextmanager
def calls_of(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> Iterator[list[int]]:
    """Count the calls of a function that really runs."""
    calls: list[int] = []
    original = getattr(module, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, counted)
        yield calls


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_step_is_the_same(family: str) -> None:
    model = adapted(make_family(family))
    reference = step(model)
    tally = fuse_parts(model)
    assert tally.fused["adapters"] == 7 * LAYERS
    assert tally.fused["mlps"] == tally.fused["rotations"] == tally.fused["shared"] == LAYERS
    assert tally.fused["norms"] >= 2 * LAYERS + 1
    assert not tally.kept
    assert_same_step(model, reference)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_full_step_is_the_same(family: str) -> None:
    model = make_family(family)
    reference = step(model)
    tally = fuse_parts(model)
    assert tally.fused["mlps"] == LAYERS
    assert tally.fused["norms"] > 0
    assert_same_step(model, reference)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_recomputes_the_same(use_reentrant: bool) -> None:
    model = adapted(make_family("qwen3"))
    reference = step(model)
    fuse_parts(model)
    model.enable_input_require_grads()
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    assert_same_step(model, reference)
    assert all(
        r.siblings is None or not r.siblings._results for r in replacements(model) if isinstance(r, FusedLinear)
    )


def test_every_update_matrix_learns_and_the_base_does_not() -> None:
    """N37."""
    model = get_peft_model(make_family("llama"), LoraConfig(r=4, target_modules="all-linear"))
    fuse_parts(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    step(model)
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != ("lora_B" in name), name


@pytest.mark.parametrize("autocast", [True, False])
def test_bf16_is_no_farther_from_fp32_than_the_models_own(autocast: bool) -> None:
    base = adapted(make_family("llama", hidden_size=64, head_dim=16))
    exact = step(base)[1]
    half = copy.deepcopy(base)
    for name, parameter in half.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.bfloat16()

    def error() -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            grads = step(half)[1]
        assert all(grad.dtype is torch.float32 for grad in grads.values())
        difference = sum(float((grads[name] - exact[name]).norm()) ** 2 for name in exact)
        return (difference / sum(float(grad.norm()) ** 2 for grad in exact.values())) ** 0.5

    own = error()
    fuse_parts(half)
    assert error() <= 1.05 * own


def test_disabled_and_merged_adapters_are_noticed() -> None:
    model = adapted(make_family("llama")).eval()
    ids = inputs()["input_ids"]
    with torch.no_grad():
        on = model(ids).logits
        with model.disable_adapter():
            off = model(ids).logits
        fuse_parts(model)
        torch.testing.assert_close(model(ids).logits, on)
        with model.disable_adapter():
            torch.testing.assert_close(model(ids).logits, off)
        torch.testing.assert_close(model(ids).logits, on)
        model.merge_adapter()
        torch.testing.assert_close(model(ids).logits, on)
        model.unmerge_adapter()
        torch.testing.assert_close(model(ids).logits, on)
        merged = model.merge_and_unload()  # pyright: ignore[reportCallIssue]
        torch.testing.assert_close(merged(ids).logits, on)
    assert not (on - off).abs().max() < 0.1


def test_a_second_adapter_takes_the_layers_own_way() -> None:
    model = adapted(make_family("llama"))
    fuse_parts(model)
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    redraw(model)
    model.set_adapter("other")
    fused = step(model)
    model.base_model.set_adapter(["default", "other"])
    both = step(model)
    restore_modules(model)
    assert_same_step(model, both)
    model.set_adapter("other")
    assert_same_step(model, fused)


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"use_dora": True}, "DoRA"), ({"lora_dropout": 0.5}, "dropout"), ({"lora_bias": True}, "bias")],
)
def test_other_adapters_keep_their_own_code(changes: dict[str, Any], why: str) -> None:
    bias = {"attention_bias": True, "mlp_bias": True} if why == "bias" else {}
    model = adapted(make_family("llama", **bias), **changes)
    torch.manual_seed(0)
    reference = step(model)
    tally = fuse_parts(model)
    assert tally.fused["adapters"] == 0
    assert tally.fused["norms"] > 0
    torch.manual_seed(0)
    assert_same_step(model, reference)


def test_dropout_counts_in_training_only() -> None:
    model = adapted(make_family("llama"), lora_dropout=0.5)
    layer = next(module for module in model.modules() if hasattr(module, "lora_A"))
    assert projection_of(layer) is None
    assert projection_of(layer.eval()) is not None


def test_queries_keys_and_values_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory.model.fused import linear

    model = adapted(make_family("llama"))
    fuse_parts(model)
    with (
        calls_of(monkeypatch, linear, "lora_linears") as shared,
        calls_of(monkeypatch, linear, "lora_linear") as alone,
    ):
        step(model)
    assert len(shared) == LAYERS
    assert len(alone) == LAYERS  # o_proj


def test_shared_results_do_not_outlive_an_error() -> None:
    model = adapted(make_family("llama"))
    fuse_parts(model)
    attention = next(r for r in replacements(model) if isinstance(r, FusedAttention))
    with pytest.raises(TypeError):  # it fails after the projections, for want of angles
        attention.module(hidden_states=torch.randn(1, 3, 32), position_embeddings=None)
    assert attention.siblings is not None
    assert not attention.siblings._results
    assert attention.siblings._source is None
    first, _, _ = attention.siblings.members
    assert isinstance(first(torch.randn(1, 3, 32)), Tensor)
    assert not attention.siblings._results


def test_siblings_with_different_inputs_part_ways() -> None:
    model = adapted(make_family("llama"))
    fuse_parts(model)
    attention = next(r for r in replacements(model) if isinstance(r, FusedAttention))
    siblings = attention.siblings
    assert siblings is not None
    some, other = torch.randn(2, 1, 3, 32)
    query, key, _ = siblings.members
    alone = key(other)
    with siblings.shared():
        query(some)
        torch.testing.assert_close(key(other), alone)
    assert not siblings.is_useful


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_generating_in_the_middle_of_training_changes_nothing(family: str) -> None:
    model = adapted(make_family(family))
    ids = inputs()["input_ids"][:1]
    plain = model.eval().generate(input_ids=ids, max_new_tokens=8, do_sample=False)
    reference = step(model.train())
    fuse_parts(model)
    assert_same_step(model, reference)
    assert torch.equal(model.eval().generate(input_ids=ids, max_new_tokens=8, do_sample=False), plain)
    assert_same_step(model.train(), reference)


def test_saved_files_are_the_same_bytes(tmp_path: Path) -> None:
    model = adapted(make_family("qwen2"))
    names = list(model.state_dict())
    model.save_pretrained(tmp_path / "plain")
    fuse_parts(model)
    assert list(model.state_dict()) == names
    step(model)
    model.save_pretrained(tmp_path / "fused")
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "fused" / file).read_bytes()
    whole = restore_modules(model).merge_and_unload()  # pyright: ignore[reportCallIssue]
    fuse_parts(whole)
    whole.save_pretrained(tmp_path / "whole")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


def test_a_deep_copy_stands_on_its_own() -> None:
    model = adapted(make_family("llama"))
    fuse_parts(model)
    reference = step(model)
    twin = copy.deepcopy(model)
    redraw(model)
    assert kinds(twin) == kinds(model)
    assert_same_step(twin, reference)


def test_restoring_leaves_no_trace() -> None:
    model = adapted(make_family("llama"))
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    fuse_parts(model)
    assert kinds(model)
    restore_modules(model)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before


def test_a_hook_on_a_layer_is_not_passed_over() -> None:
    model = adapted(make_family("llama"))
    fuse_parts(model)
    seen: list[str] = []
    for name, module in model.named_modules():
        if name.endswith(("q_proj.base_layer", "gate_proj.lora_A.default", "down_proj")):
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
    step(model)
    assert len(seen) == 3 * LAYERS


def test_a_norm_of_another_formula_is_left_alone() -> None:
    class DoubleRMSNorm(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(width))
            self.eps = 1e-6

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    model = nn.Sequential(DoubleRMSNorm(8))
    tally = fuse_parts(model)
    assert (tally.fused["norms"], tally.kept["norms"]) == (0, 1)
    assert not kinds(model)


def test_interleaved_rotations_keep_their_own_function() -> None:
    model = adapted(make_family("cohere", layer_norm_eps=1e-5))
    reference = step(model)
    tally = fuse_parts(model)
    assert tally.kept["rotations"] == LAYERS
    assert tally.fused["adapters"] == 7 * LAYERS
    assert_same_step(model, reference)


@pytest.mark.slow
def test_under_torch_compile_the_own_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory.model.fused import blocks

    model = adapted(make_family("llama"))
    fuse_parts(model)
    with calls_of(monkeypatch, blocks, "rms_norm") as norms, torch.no_grad():
        compiled: Callable[..., Any] = torch.compile(model, backend="eager")
        compiled(input_ids=inputs()["input_ids"], use_cache=False)
    assert not norms


def test_the_key_switches_it_off(caplog: pytest.LogCaptureFixture) -> None:
    from types import SimpleNamespace

    model: Any = adapted(make_family("llama"))
    off: Any = SimpleNamespace(is_trainable=True, model_args=SimpleNamespace(fused_modules=False))
    inference: Any = SimpleNamespace(is_trainable=False, model_args=SimpleNamespace(fused_modules=True))
    for request in (off, inference):
        assert passes.fuse_modules(model, request) is model
        assert not kinds(model)


@pytest.mark.parametrize("is_fused", [False, True])
def test_full_training_under_autocast_reaches_every_weight(is_fused: bool) -> None:
    """Weights and hidden states in float32, products in bf16: formats mix in norms, angles and attention."""
    model = make_family("qwen3")
    exact = step(model)[1]
    register_flat_attention()
    model.set_attn_implementation(FLAT_ATTENTION)
    if is_fused:
        fuse_parts(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grads = step(model)[1]
    assert grads.keys() == exact.keys()
    difference = sum(float((grads[name] - exact[name]).norm()) ** 2 for name in exact)
    assert all(grad.dtype is torch.float32 for grad in grads.values())
    assert difference**0.5 < 0.05 * sum(float(grad.norm()) ** 2 for grad in exact.values()) ** 0.5


@pytest.mark.slow
def test_two_ranks_average_the_gradients_of_one(tmp_path: Path) -> None:
    script = Path(__file__).with_name("fused_ranks.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run([*command, str(tmp_path / "grads.pt")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grads = torch.load(tmp_path / "grads.pt", weights_only=True)

    model = adapted(make_family("llama"))  # the two rows are equally long, so the mean over both is the ranks' mean
    reference = step(model)[1]

    assert grads.keys() == reference.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, reference[name], rtol=0, atol=1e-5 * float(reference[name].abs().max()))
