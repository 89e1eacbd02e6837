"""Products with a frozen weight in 8-bit floats, against float64; torch's 8-bit product runs on a CPU as well."""

import pytest
import torch
from torch import Tensor, nn

from llamafactory.model.quantization.float8 import Float8Linear
from llamafactory.ops.float8 import float8_linear, from_float8, to_float8


HALF_STEP = 2.0**-4
"""Rounding to a mantissa of 3 bits moves a number by a sixteenth of itself at most."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def distance(some: Tensor, other: Tensor) -> float:
    return float((some.detach().double() - other.double()).norm() / other.double().norm())


def test_each_number_of_a_weight_is_rounded_to_its_neighbour() -> None:
    weight = normal(32, 48)
    weight[3] = 0
    weight[5] *= 1e-4  # each row has a scale of its own
    rounded = from_float8(to_float8(weight), torch.float32)
    assert bool(((rounded - weight).abs() <= HALF_STEP * weight.abs() + 1e-3 * weight.abs().amax(1, True)).all())
    assert distance(rounded[5], weight[5]) < 0.03
    assert torch.equal(to_float8(rounded).codes_OD, to_float8(weight).codes_OD)


@pytest.mark.parametrize("in_float8", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient_are_those_of_the_unpacked_weight(dtype: torch.dtype, in_float8: bool) -> None:
    """Unpacked they agree to the format's own rounding; in 8 bits the other side is rounded too, by 3 % on average."""
    weight, bias = to_float8(normal(32, 48)), normal(32, seed=1)
    x, dy = normal(2, 7, 48, seed=2).to(dtype), normal(2, 7, 32, seed=3).to(dtype)
    mine = x.clone().requires_grad_()
    y = float8_linear(mine, weight, bias, in_float8=in_float8)
    y.backward(dy)
    plain = x.double().requires_grad_()
    expected = plain @ from_float8(weight, torch.float64).t() + bias.double()
    expected.backward(dy.double())

    limit = 0.04 if in_float8 else (1e-6 if dtype == torch.float32 else 1e-2)
    assert y.dtype == dtype
    assert distance(y, expected) < limit
    assert mine.grad is not None
    assert plain.grad is not None
    assert distance(mine.grad, plain.grad) < limit


@pytest.mark.parametrize("in_float8", [False, True])
def test_a_layer_is_near_the_one_that_it_was_made_from(in_float8: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(64, 32).bfloat16()
    x = normal(5, 64).bfloat16().requires_grad_()
    wanted = torch.autograd.grad(plain(x).float().square().sum(), x)[0]
    layer = Float8Linear(plain, in_float8=in_float8)
    found = torch.autograd.grad(layer(x).float().square().sum(), x)[0]
    assert distance(layer(x), plain(x)) < 0.05
    assert distance(found, wanted) < 0.08
    assert layer.weight.dtype == torch.uint8
    assert layer.weight.numel() == plain.weight.numel()


def test_autocast_decides_the_format() -> None:
    weight = to_float8(normal(32, 48))
    with torch.autocast("cpu", torch.bfloat16):
        y = float8_linear(normal(3, 48, seed=4), weight, None, in_float8=False)
    assert y.dtype == torch.bfloat16
