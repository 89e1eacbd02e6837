"""Which kernel a flat batch gets on a GPU, and that it is called by the names of its real API. The kernels are fakes.

The fakes take the parameters of flash-attn 2.8 and of flash-attn 3 (package flash_attn_interface) and compute what the
reference computes, so a wrong name, order or window is seen on a machine without a GPU.
"""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from llamafactory.ops import attention_gpu
from llamafactory.ops.attention import reference_attention
from llamafactory.ops.attention_case import Documents, Scores
from llamafactory.ops.attention_gpu import varlen_attention


BOTH = {"cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"}
CASE = {*BOTH, "softmax_scale", "causal", "window_size", "softcap"}
BOUNDS = torch.tensor([0, 5, 12], dtype=torch.int32)


def attend(q_THD: Tensor, k_TGD: Tensor, v_TGE: Tensor, bounds: Tensor, scores: Scores) -> Tensor:
    heads = q_THD.transpose(0, 1), k_TGD.transpose(0, 1), v_TGE.transpose(0, 1)
    return reference_attention(*heads, Documents(bounds, int(bounds.diff().max())), scores)


class Fakes:
    """Packages by name, and which of them was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.monkeypatch = monkeypatch
        self.generation, self.found = 9, set[str]()
        monkeypatch.setattr(attention_gpu, "find_spec", lambda name: name if name in self.found else None)
        monkeypatch.setattr(attention_gpu, "has_torch_kernel", lambda: "torch" in self.found)
        monkeypatch.setattr(attention_gpu, "torch_kernel", self.torch_kernel)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (self.generation, 0))
        for name, function in (("flash_attn", self.flash_2), ("flash_attn_interface", self.flash_3)):
            module = ModuleType(name)
            vars(module)["flash_attn_varlen_func"] = function
            monkeypatch.setitem(sys.modules, name, module)

    def torch_kernel(self, q: Tensor, k: Tensor, v: Tensor, documents: Documents, scores: Scores) -> Tensor:
        self.calls.append("torch")
        return attend(q, k, v, documents.bounds_N, scores)

    def flash_2(self, *tensors: Tensor, **case: Any) -> Tensor:
        assert case.keys() == CASE | {"dropout_p"}
        return self.flash("flash_attn", *tensors, **case)

    def flash_3(self, *tensors: Tensor, **case: Any) -> Tensor:
        assert case.keys() == CASE
        return self.flash("flash_attn_interface", *tensors, **case)

    def flash(self, package: str, *tensors: Any, **case: Any) -> Tensor:
        """Both take q, k and v, and the rest by name."""
        self.calls.append(package)
        q, k, v = tensors
        bounds = case["cu_seqlens_q"]
        assert case["causal"]
        assert case["max_seqlen_q"] == case["max_seqlen_k"] == 7
        assert torch.equal(bounds, case["cu_seqlens_k"])
        before, after = case["window_size"]
        window = None if before < 0 else before + 1
        assert after == (-1 if window is None else 0)
        scores = Scores(scale=case["softmax_scale"], window=window, softcap=case["softcap"] or None)
        return attend(q, k, v, bounds, scores)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    return Fakes(monkeypatch)


@pytest.mark.parametrize(
    ("found", "generation", "case", "kernel"),
    [
        ({"torch"}, 9, {}, "torch"),
        ({"torch", "flash_attn"}, 8, {}, "torch"),
        ({"torch", "flash_attn", "flash_attn_interface"}, 9, {}, "flash_attn_interface"),
        ({"torch", "flash_attn", "flash_attn_interface"}, 8, {}, "torch"),
        ({"torch", "flash_attn_interface"}, 9, {"softcap": 20.0}, "flash_attn_interface"),
        ({"torch", "flash_attn"}, 9, {"softcap": 20.0}, "flash_attn"),
        ({"torch", "flash_attn", "flash_attn_interface"}, 9, {"dropout": 0.5}, "flash_attn"),
        ({"flash_attn"}, 8, {"window": 3}, "flash_attn"),
        ({"torch", "flash_attn_interface"}, 9, {"window": 3}, "flash_attn_interface"),
        ({"torch"}, 9, {"softcap": 20.0}, None),
        (set(), 9, {}, None),
    ],
)
def test_the_kernel_is_chosen_by_what_is_installed_and_computes_the_reference(
    fakes: Fakes, found: set[str], generation: int, case: dict[str, Any], kernel: str | None
) -> None:
    fakes.found, fakes.generation = found, generation
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(heads, 12, 8, generator=generator).bfloat16() for heads in (4, 2, 2))
    scores = Scores(**{"scale": 0.3, **case})

    read = varlen_attention(query, key, value, Documents(BOUNDS, 7), scores)

    assert fakes.calls == ([] if kernel is None else [kernel])
    if read is None:
        assert kernel is None
        return
    expected = reference_attention(query, key, value, Documents(BOUNDS, 7), scores._replace(dropout=0.0))
    assert_close(read, expected)


def test_long_floats_and_odd_sizes_are_left_to_others(fakes: Fakes) -> None:
    fakes.found = {"torch"}
    heads = torch.randn(2, 12, 8)
    assert varlen_attention(heads, heads, heads, Documents(BOUNDS, 7), Scores(scale=1.0)) is None
    short = torch.randn(2, 12, 6).half()
    assert varlen_attention(short, short, short, Documents(BOUNDS, 7), Scores(scale=1.0)) is None
