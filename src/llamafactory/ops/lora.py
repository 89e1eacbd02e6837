"""Linear layers with low-rank updates: one autograd function for all projections of the same input.

y = x W^T + b + s (x A^T) B^T (Hu et al., LoRA, 2021). Shapes: N tokens, D width in, O width out, R rank (of all
projections of a call together where it stands in `a_RD`).

The input is never copied to float32, the adapters' float32 weights are rounded to the format of the computation
instead; the update is added into the output, and its gradient into dx, by the multiplication itself; a frozen W gets
no gradient. All projections of one input share one multiplication with their stacked A.

W may lie in few bits (QLoRA: Dettmers et al., 2023). It is then made into numbers for each product and thrown away.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .low_rank import add_grown, correlate, shrink


class PackedWeight(Protocol):
    """A frozen weight [O, D] in few bits."""

    @property
    def shape(self) -> torch.Size:
        """O and D, not the shape of what is stored."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        ...

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether the layer that it belongs to would itself multiply in a format."""
        ...

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """Return it as numbers."""
        ...


class Projection(NamedTuple):
    """The weights of one linear layer; without `a_RD` and `b_OR` it is an ordinary one."""

    weight_OD: Tensor | PackedWeight
    bias_O: Tensor | None = None
    a_RD: Tensor | None = None
    b_OR: Tensor | None = None
    scale: float = 1.0


class Fixed(NamedTuple):
    """What of a projection autograd does not see."""

    scale: float
    packed: PackedWeight | None


class Rounded(NamedTuple):
    """Projections of one input in the format of the computation, made once in the forward pass."""

    a_RD: Tensor | None
    """The stacked A of all projections that have one."""
    weights: tuple[Tensor | PackedWeight, ...]
    bs: tuple[Tensor | None, ...]
    """Each B times its scale."""

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """What autograd keeps: a packed weight is a part of the model anyway."""
        return self.a_RD, *(weight if isinstance(weight, Tensor) else None for weight in self.weights), *self.bs


def lora_linear(x: Tensor, projection: Projection) -> Tensor:
    """Return x W^T + bias + scale (x A^T) B^T; gradients come back in the formats of x and of the weights."""
    return lora_linears(x, [projection])[0]


def lora_linears(x: Tensor, projections: Sequence[Projection]) -> tuple[Tensor, ...]:
    """Return every projection of the same x; under autocast all of it happens in autocast's format."""
    x_ND = x.reshape(-1, x.shape[-1])
    outs = cast(Any, _SharedInput).apply(x_ND, compute_dtype(x), fixed_parts(projections), *flatten(projections))
    return tuple(cast(Tensor, out).view(*x.shape[:-1], out.shape[1]) for out in outs)


def lora_linear_reference(x: Tensor, projection: Projection) -> Tensor:
    """Return what `lora_linear` returns, by way of PyTorch's own functions."""
    linear = torch.nn.functional.linear
    y = linear(x, numbers_of(projection.weight_OD, x.dtype), projection.bias_O)
    if projection.a_RD is None or projection.b_OR is None:
        return y
    update = linear(linear(x.to(projection.a_RD.dtype), projection.a_RD), projection.b_OR)
    return (y + update * projection.scale).to(y.dtype)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the format that a matrix multiplication of x happens in."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def numbers_of(weight: Tensor | PackedWeight, dtype: torch.dtype) -> Tensor:
    """Return a weight as numbers; one that is a tensor comes back as it is."""
    return weight if isinstance(weight, Tensor) else weight.unpack(dtype)


def flatten(projections: Sequence[Projection]) -> list[Tensor | None]:
    """List the tensors of all projections, four each: autograd sees only plain arguments."""
    rows = [(p.weight_OD if isinstance(p.weight_OD, Tensor) else None, p.bias_O, p.a_RD, p.b_OR) for p in projections]
    return [tensor for row in rows for tensor in row]


def fixed_parts(projections: Sequence[Projection]) -> tuple[Fixed, ...]:
    """List what `flatten` leaves out."""
    return tuple(Fixed(p.scale, None if isinstance(p.weight_OD, Tensor) else p.weight_OD) for p in projections)


def unflatten(tensors: Sequence[Tensor | None], fixed: Sequence[Fixed]) -> list[Projection]:
    """Undo `flatten`."""
    rows = zip(tensors[::4], tensors[1::4], tensors[2::4], tensors[3::4], fixed, strict=True)
    return [Projection(_whole_or_packed(weight, kept), bias, a, b, kept.scale) for weight, bias, a, b, kept in rows]


def round_projections(projections: Sequence[Projection], dtype: torch.dtype) -> Rounded:
    """Bring weights to the format of the computation; frozen ones are there already and are not copied."""
    stacked = [projection.a_RD for projection in projections if projection.a_RD is not None]
    a_RD = None
    if stacked:
        a_RD = (stacked[0] if len(stacked) == 1 else torch.cat(stacked)).to(dtype)
    bs = tuple(None if p.b_OR is None else (p.b_OR * p.scale).to(dtype) for p in projections)
    weights = tuple(p.weight_OD.to(dtype) if isinstance(p.weight_OD, Tensor) else p.weight_OD for p in projections)
    return Rounded(a_RD, weights, bs)


def kept_rounded(tensors: Sequence[Tensor | None], fixed: Sequence[Fixed]) -> Rounded:
    """Undo `Rounded.tensors`."""
    num = len(fixed)
    weights = map(_whole_or_packed, tensors[1 : 1 + num], fixed)
    return Rounded(tensors[0], tuple(weights), tuple(tensors[1 + num :]))


def _whole_or_packed(weight: Tensor | None, fixed: Fixed) -> Tensor | PackedWeight:
    return cast(Tensor, weight) if fixed.packed is None else fixed.packed


def project(
    x_ND: Tensor, rounded: Rounded, biases: Sequence[Tensor | None]
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Return all projections of x, and x times the stacked A."""
    xa_NR = None if rounded.a_RD is None else shrink(x_ND, rounded.a_RD)
    outs: list[Tensor] = []
    start = 0
    for weight_OD, b_OR, bias_O in zip(rounded.weights, rounded.bs, biases, strict=True):
        weight_DO = numbers_of(weight_OD, x_ND.dtype).t()
        y_NO = x_ND @ weight_DO if bias_O is None else torch.addmm(bias_O.to(x_ND.dtype), x_ND, weight_DO)
        del weight_DO  # one unpacked weight at a time
        if b_OR is not None and xa_NR is not None:
            end = start + b_OR.shape[1]
            add_grown(y_NO, xa_NR[:, start:end], b_OR.t())
            start = end
        outs.append(y_NO)
    return tuple(outs), xa_NR


def update_gradients(dys: Sequence[Tensor], rounded: Rounded) -> Tensor | None:
    """Return the gradients of x times the stacked A."""
    parts = [shrink(dy_NO, b_OR.t()) for dy_NO, b_OR in zip(dys, rounded.bs, strict=True) if b_OR is not None]
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def input_gradient(dys: Sequence[Tensor], dxa_NR: Tensor | None, rounded: Rounded) -> Tensor:
    """Return dx, all parts added up by the multiplications themselves."""
    dtype = dys[0].dtype
    dx_ND = dys[0] @ numbers_of(rounded.weights[0], dtype)
    for dy_NO, weight_OD in zip(dys[1:], rounded.weights[1:], strict=True):
        dx_ND.addmm_(dy_NO, numbers_of(weight_OD, dtype))
    if dxa_NR is not None and rounded.a_RD is not None:
        add_grown(dx_ND, dxa_NR, rounded.a_RD)
    return dx_ND


class Inputs(NamedTuple):
    """What the gradients of weights are made of."""

    x_ND: Tensor
    xa_NR: Tensor | None
    dxa_NR: Tensor | None


def weight_gradients(
    dys: Sequence[Tensor], inputs: Inputs, projections: Sequence[Projection], needs: Sequence[bool]
) -> list[Tensor | None]:
    """Return the gradients of all weights, in the order of `flatten`; `needs` says which are wanted."""
    da_RD = None
    if inputs.dxa_NR is not None and any(needs[2::4]):
        da_RD = correlate(inputs.dxa_NR, inputs.x_ND)
    grads: list[Tensor | None] = []
    start = 0
    for index, (dy_NO, projection) in enumerate(zip(dys, projections, strict=True)):
        wants_weight, wants_bias, wants_a, wants_b = needs[4 * index : 4 * index + 4]
        weight = projection.weight_OD
        dw_OD = dy_NO.t() @ inputs.x_ND if wants_weight else None
        grads.append(dw_OD.to(weight.dtype) if dw_OD is not None and isinstance(weight, Tensor) else None)
        bias_O = projection.bias_O
        grads.append(dy_NO.sum(dim=0, dtype=bias_O.dtype) if wants_bias and bias_O is not None else None)
        if projection.a_RD is None or projection.b_OR is None or inputs.xa_NR is None:
            grads += [None, None]
            continue
        end = start + projection.a_RD.shape[0]
        grads.append(da_RD[start:end].to(projection.a_RD.dtype) if wants_a and da_RD is not None else None)
        db_RO = correlate(inputs.xa_NR[:, start:end], dy_NO) if wants_b else None
        grads.append(None if db_RO is None else (db_RO.to(projection.b_OR.dtype) * projection.scale).t())
        start = end
    return grads


class _SharedInput(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, dtype: torch.dtype, fixed: tuple[Fixed, ...], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        projections = unflatten(tensors, fixed)
        rounded_ND = x_ND.to(dtype)
        rounded = round_projections(projections, dtype)
        outs, xa_NR = project(rounded_ND, rounded, [projection.bias_O for projection in projections])
        ctx.save_for_backward(rounded_ND, xa_NR, *tensors, *rounded.tensors)
        ctx.fixed, ctx.x_dtype = fixed, x_ND.dtype
        return outs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dys: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        fixed = cast(tuple[Fixed, ...], ctx.fixed)
        x_ND, xa_NR, *saved = cast(tuple[Tensor, ...], ctx.saved_tensors)
        num_tensors = 4 * len(fixed)
        projections, rounded = unflatten(saved[:num_tensors], fixed), kept_rounded(saved[num_tensors:], fixed)
        dxa_NR = update_gradients(dys, rounded)
        grads = weight_gradients(dys, Inputs(x_ND, xa_NR, dxa_NR), projections, ctx.needs_input_grad[3:])
        dx_ND = input_gradient(dys, dxa_NR, rounded).to(ctx.x_dtype) if ctx.needs_input_grad[0] else None
        return dx_ND, None, None, *grads
