"""The updates of the optimizers as their papers write them, in float64 and without any thought of speed.

Each is a generator: it is sent a gradient [M, N] and yields the weight after the step.
"""

from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor


BETAS, EPS = (0.9, 0.999), 1e-8
Steps = Generator[Tensor, Tensor, None]


class Adam:
    """Kingma and Ba, algorithm 1: returns m / (sqrt(v) + eps) without bias."""

    def __init__(self) -> None:
        self.m: Any = 0.0
        self.v: Any = 0.0
        self.t = 0

    def __call__(self, g: Tensor) -> Tensor:
        self.t += 1
        self.m = BETAS[0] * self.m + (1 - BETAS[0]) * g
        self.v = BETAS[1] * self.v + (1 - BETAS[1]) * g**2
        return (self.m / (1 - BETAS[0] ** self.t)) / ((self.v / (1 - BETAS[1] ** self.t)) ** 0.5 + EPS)


def top_left(g: Tensor, rank: int) -> Tensor:
    """The main left singular vectors, with the sign that makes the largest entry positive."""
    u = torch.linalg.svd(g, full_matrices=False).U[:, :rank]
    peaks = torch.stack([u[u[:, i].abs().argmax(), i] for i in range(rank)])
    return u * peaks.sign()


def galore(w: Tensor, lr: float, decay: float, **kw: Any) -> Steps:
    """Algorithm 2 of GaLore, with decoupled weight decay."""
    rank, kind = kw["rank"], kw["kind"]
    adam, t, left, right = Adam(), 0, torch.empty(0), torch.empty(0)
    is_tall = w.shape[0] >= w.shape[1]
    is_left = {"left": True, "right": False, "std": not is_tall, "reverse_std": is_tall}.get(kind)
    g = yield w
    while True:
        if t % kw["interval"] == 0:
            left, right = top_left(g, rank), top_left(g.T, rank)
        t += 1
        if kind == "full":
            n = left @ adam(left.T @ g @ right) @ right.T
        elif is_left:
            n = left @ adam(left.T @ g)
        else:
            n = adam(g @ right) @ right.T
        w = (1 - lr * decay) * w - lr * kw["scale"] * n
        g = yield w


def apollo(w: Tensor, lr: float, decay: float, *, directions: list[Tensor], interval: int, **kw: Any) -> Steps:
    """Algorithm 1 of APOLLO; `directions` are the projections P [R, shorter side], one for each interval."""
    adam, t, last = Adam(), 0, None
    is_wide = w.shape[0] < w.shape[1]
    alpha = kw["scale"] ** 0.5
    g = yield w
    while True:
        p = directions[t // interval]
        t += 1
        low = p @ (g if is_wide else g.T)
        n = adam(low)
        if kw["scale_type"] == "tensor":
            u = g * n.norm() / low.norm()
        else:
            s = n.norm(dim=0) / low.norm(dim=0)
            u = g * (s[None, :] if is_wide else s[:, None])
        u = u * (alpha if kw["is_scaled_first"] else 1.0)
        if last is not None and u.norm() / last > 1.01:
            u = u / u.norm() * 1.01 * last
        last = u.norm()
        w = (1 - lr * decay) * w - lr * u * (1.0 if kw["is_scaled_first"] else alpha)
        g = yield w


def adam_mini(w: Tensor, lr: float, decay: float, *, num_blocks: int) -> Steps:
    """Algorithm 1 of Adam-mini for one matrix whose rows form blocks."""
    m: Any = 0.0
    v = [0.0] * num_blocks
    t = 0
    g = yield w
    while True:
        t += 1
        m = BETAS[0] * m + (1 - BETAS[0]) * g
        parts = []
        for b, (m_b, g_b) in enumerate(zip(m.chunk(num_blocks), g.chunk(num_blocks), strict=True)):
            v[b] = BETAS[1] * v[b] + (1 - BETAS[1]) * float((g_b**2).mean())
            parts.append((m_b / (1 - BETAS[0] ** t)) / ((v[b] / (1 - BETAS[1] ** t)) ** 0.5 + EPS))
        w = (1 - lr * decay) * w - lr * torch.cat(parts)
        g = yield w


def muon(w: Tensor, lr: float, decay: float) -> Steps:
    """Muon with Nesterov momentum 0.95, five Newton-Schulz steps, and 0.2 sqrt(max(M, N)) of Moonlight."""
    a, b, c = 3.4445, -4.7750, 2.0315
    buffer: Any = 0.0
    g = yield w
    while True:
        buffer = 0.95 * buffer + 0.05 * g
        x = 0.05 * g + 0.95 * buffer
        is_tall = x.shape[0] > x.shape[1]
        x = (x.T if is_tall else x) / x.norm()
        for _ in range(5):
            s = x @ x.T
            x = a * x + (b * s + c * s @ s) @ x
        w = (1 - lr * decay) * w - lr * 0.2 * max(w.shape) ** 0.5 * (x.T if is_tall else x)
        g = yield w


def adamw(w: Tensor, lr: float, decay: float) -> Steps:
    """AdamW: a block of BAdam, and every weight that another optimizer does not treat."""
    adam = Adam()
    g = yield w
    while True:
        w = (1 - lr * decay) * w - lr * adam(g)
        g = yield w


def on_grid(w: Tensor, bits: int, noise: Tensor | None = None) -> Tensor:
    """Blocks of 256 numbers between their extremes, in 2^bits points; rounded to the nearest, or down after noise."""
    flat = torch.cat([w.flatten(), torch.zeros(-w.numel() % 256, dtype=w.dtype)]).view(-1, 256)
    rows: list[Tensor] = []
    for index, block in enumerate(flat):
        low, high = block.min(), block.max()
        step = (high - low) / (2**bits - 1) if high > low else torch.ones((), dtype=w.dtype)
        place = (block - low) / step
        place = place.round() if noise is None else (place + noise[index]).floor().clamp(max=2**bits - 1)
        rows.append(place * step + low)
    return torch.stack(rows).flatten()[: w.numel()].view_as(w)


def q_galore(w: Tensor, lr: float, decay: float, *, noises: Any, **kw: Any) -> Steps:
    """Q-GaLore (arXiv 2407.08296): GaLore from the left with P in 4 bits, the weight in 8, rounded by chance."""
    adam, t, p = Adam(), 0, torch.empty(0)
    w = on_grid(w, 8)
    g = yield w
    while True:
        if t % kw["interval"] == 0:
            p = on_grid(top_left(g, kw["rank"]), 4)
        t += 1
        w = (1 - lr * decay) * w - lr * kw["scale"] * p @ adam(p.T @ g)
        w = on_grid(w, 8, next(noises))
        g = yield w
