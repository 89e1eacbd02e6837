"""A whole gated feed-forward block, with or without low-rank updates, as one autograd function.

down(activation(gate(x)) * up(x)). Shapes: N tokens, D width, F feed-forward width. Kept for the backward pass are x
and the two projections of it; the product is made again there, by the pass that makes its gradients. Shazeer, GLU
Variants Improve Transformer, 2020; for the updates see lora.py.
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .kernels import activate, kernels_for
from .lora import (
    Fixed,
    Inputs,
    Projection,
    compute_dtype,
    fixed_parts,
    flatten,
    input_gradient,
    kept_rounded,
    lora_linear_reference,
    project,
    round_projections,
    unflatten,
    update_gradients,
    weight_gradients,
)


ACTIVATIONS = ("silu", "gelu_tanh", "gelu")


class GatedMlp(NamedTuple):
    """The weights of a block."""

    gate: Projection
    up: Projection
    down: Projection
    activation: str
    """One of ACTIVATIONS."""


def gated_mlp(x: Tensor, block: GatedMlp) -> Tensor:
    """Return the block's output; under autocast all of it happens in autocast's format."""
    x_ND = x.reshape(-1, x.shape[-1])
    projections = block[:3]
    fixed = fixed_parts(projections)
    y_ND = cast(Any, _GatedMlp).apply(x_ND, compute_dtype(x), block.activation, fixed, *flatten(projections))
    return cast(Tensor, y_ND).view(*x.shape[:-1], -1)


def gated_mlp_reference(x: Tensor, block: GatedMlp) -> Tensor:
    """Return what `gated_mlp` returns, by way of PyTorch's own functions."""
    gate, up = lora_linear_reference(x, block.gate), lora_linear_reference(x, block.up)
    return lora_linear_reference(activate(gate, block.activation) * up, block.down)


class _GatedMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, dtype: torch.dtype, activation: str, fixed: tuple[Fixed, ...], *tensors: Tensor | None
    ) -> Tensor:
        projections = unflatten(tensors, fixed)
        rounded_ND = x_ND.to(dtype)
        outer, inner = round_projections(projections[:2], dtype), round_projections(projections[2:], dtype)
        biases = [projection.bias_O for projection in projections]
        (gate_NF, up_NF), xa_NR = project(rounded_ND, outer, biases[:2])
        product_NF = kernels_for(gate_NF, activation=activation).gated(gate_NF, up_NF, activation)
        (y_ND,), pa_NR = project(product_NF, inner, biases[2:])
        kept = (rounded_ND, xa_NR, pa_NR, gate_NF, up_NF)
        ctx.save_for_backward(*kept, *tensors, *outer.tensors, *inner.tensors)
        ctx.activation, ctx.fixed, ctx.x_dtype = activation, fixed, x_ND.dtype
        return y_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        fixed = cast(tuple[Fixed, ...], ctx.fixed)
        x_ND, xa_NR, pa_NR, gate_NF, up_NF, *saved = cast(tuple[Tensor, ...], ctx.saved_tensors)
        projections = unflatten(saved[:12], fixed)
        outer, inner = kept_rounded(saved[12:17], fixed[:2]), kept_rounded(saved[17:], fixed[2:])
        needs = ctx.needs_input_grad[4:]

        dpa_NR = update_gradients([dy_ND], inner)
        dproduct_NF = input_gradient([dy_ND], dpa_NR, inner)
        kernels = kernels_for(gate_NF, activation=ctx.activation)
        product_NF, *dys = kernels.gated_backward(gate_NF, up_NF, dproduct_NF, ctx.activation)
        down_grads = weight_gradients([dy_ND], Inputs(product_NF, pa_NR, dpa_NR), projections[2:], needs[8:])
        del product_NF, dproduct_NF

        dxa_NR = update_gradients(dys, outer)
        grads = weight_gradients(dys, Inputs(x_ND, xa_NR, dxa_NR), projections[:2], needs[:8])
        dx_ND = input_gradient(dys, dxa_NR, outer).to(ctx.x_dtype) if ctx.needs_input_grad[0] else None
        return dx_ND, None, None, None, *grads, *down_grads
