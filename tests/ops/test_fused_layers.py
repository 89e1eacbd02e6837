"""The fused pieces of a decoder layer against plain PyTorch: values and gradients, all formats, all forms."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from llamafactory.ops import kernels as kernels_module
from llamafactory.ops.gated_mlp import ACTIVATIONS, GatedMlp, gated_mlp, gated_mlp_reference
from llamafactory.ops.kernels import EAGER, compiled_kernels, kernels_for
from llamafactory.ops.lora import Projection, lora_linear, lora_linear_reference, lora_linears
from llamafactory.ops.native import native_kernels
from llamafactory.ops.norm import rms_norm, rms_norm_reference
from llamafactory.ops.rope import rotate, rotate_pair, rotate_reference


WIDTH, OUT, RANK = 24, 40, 4


def assert_near(some: Tensor, other: Tensor, limit: float = 1e-5) -> None:
    """Compare on the scale of the whole tensor, as rounding in long sums is."""
    assert some.dtype == other.dtype
    scale = max(1.0, float(other.detach().abs().max()))
    torch.testing.assert_close(some, other, rtol=0.0, atol=limit * scale)


def draw(*shape: int, seed: int = 0, grad: bool = True, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype).requires_grad_(grad)


def projection(seed: int, width: int = WIDTH, out: int = OUT, rank: int = RANK, **options: Any) -> Projection:
    """A frozen layer with a trained update, unless the options say otherwise."""
    grad, dtype = options.get("trained", False), options.get("dtype", torch.float32)
    scaled = draw(out, width, seed=seed, grad=False) / width**0.5
    return Projection(
        weight_OD=scaled.to(dtype).requires_grad_(grad),
        bias_O=draw(out, seed=seed + 1, grad=grad, dtype=dtype) if options.get("bias") else None,
        a_RD=draw(rank, width, seed=seed + 2) if rank else None,
        b_OR=draw(out, rank, seed=seed + 3) if rank else None,
        scale=0.5 + seed / 100,
    )


def gradients(outs: tuple[Tensor, ...], leaves: list[Tensor]) -> list[Tensor]:
    """Gradients of a weighted sum, so that no part of the outputs is like another."""
    total = sum((out.float() * draw(*out.shape, seed=9 + i, grad=False)).sum() for i, out in enumerate(outs))
    assert isinstance(total, Tensor)
    return list(torch.autograd.grad(total, leaves))


def assert_same(
    fused: Callable[[], tuple[Tensor, ...]], plain: Callable[[], tuple[Tensor, ...]], leaves: list[Tensor]
) -> None:
    outs, references = fused(), plain()
    for out, reference in zip(outs, references, strict=True):
        assert_near(out, reference)
    for grad, reference in zip(gradients(outs, leaves), gradients(references, leaves), strict=True):
        assert_near(grad, reference)


def as_tuple(results: Any) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


def leaves_of(*projections: Projection) -> list[Tensor]:
    return [tensor for layer in projections for tensor in layer[:4] if tensor is not None and tensor.requires_grad]


@pytest.mark.parametrize(
    "options", [{}, {"bias": True}, {"trained": True, "bias": True}, {"rank": 0, "trained": True}]
)
def test_lora_linear_equals_the_plain_layers(options: dict[str, Any]) -> None:
    x, layer = draw(2, 7, WIDTH), projection(1, **options)
    leaves = [x, *leaves_of(layer)]
    assert_same(lambda: (lora_linear(x, layer),), lambda: (lora_linear_reference(x, layer),), leaves)


def test_projections_of_one_input_equal_the_single_ones() -> None:
    x = draw(2, 7, WIDTH)
    layers = [projection(1), projection(10, out=8, rank=2), projection(20, rank=0, bias=True), projection(30, out=8)]
    leaves = [x, *leaves_of(*layers)]
    assert_same(
        lambda: lora_linears(x, layers), lambda: tuple(lora_linear_reference(x, layer) for layer in layers), leaves
    )


def test_lora_gradients_only_where_they_are_wanted() -> None:
    layer = projection(1)
    x = draw(5, WIDTH, grad=False)
    lora_linear(x, layer).sum().backward()
    assert x.grad is None
    assert layer.weight_OD.grad is None
    assert layer.a_RD is not None
    assert layer.a_RD.grad is not None


def test_lora_in_bf16_is_no_farther_from_fp32_than_peft_is() -> None:
    """PEFT under autocast is the reference: adapters in fp32, x cast to fp32, everything multiplied in bf16."""
    x32, layer32 = draw(256, 64, grad=True), projection(1, width=64, out=96)
    x16 = x32.detach().bfloat16().requires_grad_()
    layer16 = layer32._replace(weight_OD=layer32.weight_OD.bfloat16())
    leaves32, leaves16 = [x32, *leaves_of(layer32)], [x16, *leaves_of(layer16)]
    true = gradients((lora_linear_reference(x32, layer32),), leaves32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = gradients((lora_linear(x16, layer16),), leaves16)
        peft = gradients((lora_linear_reference(x16, layer16),), leaves16)

    def distance(grads: list[Tensor]) -> float:
        return float(sum(((g.float() - t).norm() / t.norm()) ** 2 for g, t in zip(grads, true, strict=True)) ** 0.5)

    assert [grad.dtype for grad in ours] == [torch.bfloat16, torch.float32, torch.float32]
    assert distance(ours) <= 1.05 * distance(peft)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("options", [{}, {"trained": True, "bias": True, "rank": 0}, {"trained": True}])
def test_gated_mlp_equals_the_plain_block(activation: str, options: dict[str, Any]) -> None:
    x = draw(2, 9, WIDTH)
    layers = projection(1, **options), projection(10, **options), projection(20, width=OUT, out=WIDTH, **options)
    block = GatedMlp(*layers, activation)
    leaves = [x, *leaves_of(*layers)]
    assert_same(lambda: (gated_mlp(x, block),), lambda: (gated_mlp_reference(x, block),), leaves)


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(2, 5, WIDTH), (1, 3, 4, 20)])
def test_rms_norm_equals_the_plain_formula(shift: float, shape: tuple[int, ...]) -> None:
    x, weight = draw(*shape), draw(shape[-1], seed=1)
    assert_same(
        lambda: (rms_norm(x, weight, 1e-5, shift=shift),),
        lambda: (rms_norm_reference(x, weight, 1e-5, shift=shift),),
        [x, weight],
    )


def test_rms_norm_in_bf16_is_nearer_to_fp32_than_the_plain_formula() -> None:
    x, weight = draw(64, 96, dtype=torch.bfloat16), draw(96, seed=1, dtype=torch.bfloat16)
    wide = x.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    true = rms_norm_reference(*wide, 1e-5)
    ours, plain = rms_norm(x, weight, 1e-5), weight * rms_norm_reference(x, torch.ones_like(weight), 1e-5)
    assert ours.dtype is torch.bfloat16
    assert (ours.float() - true).norm() <= (plain.float() - true).norm()
    for grad, reference in zip(gradients((ours,), [x, weight]), gradients((true,), list(wide)), strict=True):
        torch.testing.assert_close(grad.float(), reference, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("num_rows", [1, 3])
def test_rotation_equals_the_plain_formula(num_rows: int) -> None:
    x = draw(3, 11, 4, 8).transpose(1, 2)
    cos, sin = draw(num_rows, 11, 8, seed=1, grad=False), draw(num_rows, 11, 8, seed=2, grad=False)
    assert_same(lambda: (rotate(x, cos, sin),), lambda: (rotate_reference(x, cos, sin),), [x])
    q, k = rotate_pair(x.transpose(1, 2), x.transpose(1, 2)[:, :, :2], cos, sin, unsqueeze_dim=2)
    assert_near(q.transpose(1, 2), rotate_reference(x, cos, sin))
    assert k.shape == (3, 11, 2, 8)


def test_rotation_keeps_bf16_under_float32_angles() -> None:
    x = draw(1, 2, 5, 8, dtype=torch.bfloat16)
    cos, sin = draw(1, 5, 8, seed=1, grad=False), draw(1, 5, 8, seed=2, grad=False)
    turned = rotate(x, cos, sin)
    assert turned.dtype is torch.bfloat16
    torch.testing.assert_close(turned.float(), rotate_reference(x.float(), cos, sin), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["native", pytest.param("compiled", marks=pytest.mark.slow)])
def test_every_form_of_the_kernels_equals_the_eager_one(form: str, dtype: torch.dtype) -> None:
    fast = native_kernels() if form == "native" else compiled_kernels()
    if fast is None:
        pytest.skip("no C++ compiler")
    limit = 1e-5 if dtype is torch.float32 else 0.01
    x, dy, weight = (
        draw(*shape, seed=i, grad=False, dtype=dtype) for i, shape in enumerate([(37, 50), (37, 50), (50,)])
    )
    x = x * 20
    cases: list[tuple[str, tuple[Any, ...]]] = [
        ("rms_norm", (x, weight, 1e-6, 1.0)),
        ("rms_norm_backward", (dy, x, weight, EAGER.rms_norm(x, weight, 1e-6, 0.0)[1], 0.0, True)),
        ("gated", (x, dy, "silu")),
        ("gated", (x, dy, "gelu_tanh")),
        ("gated_backward", (x, dy, dy + 1, "silu")),
        ("gated_backward", (x, dy, dy + 1, "gelu_tanh")),
    ]
    heads, angle = draw(2, 6, 3, 8, dtype=dtype, grad=False).transpose(1, 2), draw(1, 6, 8, dtype=dtype, grad=False)
    cases += [("rotate", (heads, angle, angle + 1, inverse)) for inverse in (False, True)]
    for name, arguments in cases:
        results, references = getattr(fast, name)(*arguments), getattr(EAGER, name)(*arguments)
        for result, reference in zip(as_tuple(results), as_tuple(references), strict=True):
            assert_near(result, reference, limit)


def test_native_kernels_pass_on_what_is_not_a_number() -> None:
    x = torch.tensor([[1.0, float("nan")], [float("inf"), 1.0], [3e38, 3e38]]).bfloat16()
    ones = torch.ones_like(x)
    kernels = kernels_for(x)
    assert kernels.gated(x, ones, "silu")[0, 1].isnan()
    assert kernels.gated(x, ones, "silu")[1, 0].isinf()
    assert kernels.rms_norm(x, ones[0], 1e-5, 0.0)[0][0].isnan().all()


def test_without_a_compiler_the_eager_form_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_module, "native_kernels", lambda: None)
    assert kernels_for(torch.zeros(1)) is EAGER
    assert kernels_for(torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16)) is EAGER
