"""Liger: the names of its real API, on a fake of the package (it needs a GPU), and one line where it cannot run."""

import logging
import sys
from types import ModuleType
from typing import Any

import pytest
from families import family_model

from llamafactory.extras.packages import is_available
from llamafactory.model.model_utils import liger
from llamafactory.model.model_utils.liger import use_liger


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Calls of a package with the functions and tables of liger-kernel 0.8."""
    calls: list[dict[str, Any]] = []
    root, package = ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers")
    patch = ModuleType("liger_kernel.transformers.monkey_patch")
    vars(package)["_apply_liger_kernel_to_instance"] = lambda **given: calls.append(given)
    vars(patch)["MODEL_TYPE_TO_APPLY_LIGER_FN"] = {"llama": print}
    for module in (root, package, patch):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(liger, "is_available", lambda module: module in sys.modules)
    return calls


def test_norms_and_blocks_are_liger_s_and_the_loss_stays_ours(
    patched: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    model = family_model("llama")

    assert use_liger(model, {"swiglu": False, "fused_linear_cross_entropy": True}, "cuda")

    (call,) = patched
    assert call.pop("model") is model
    assert call == {"swiglu": False, "rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}
    assert "fused_linear_cross_entropy stays ours" in caplog.text


@pytest.mark.parametrize(
    ("family", "kind", "sentence"),
    [("llama", "cpu", "needs a CUDA device"), ("gpt2", "cuda", "no kernels for models of the type gpt2")],
)
def test_what_it_cannot_do_is_said_in_one_line(
    patched: list[dict[str, Any]], caplog: pytest.LogCaptureFixture, family: str, kind: Any, sentence: str
) -> None:
    assert not use_liger(family_model(family), None, kind)
    assert not patched
    assert sentence in caplog.text


@pytest.mark.skipif(is_available("liger_kernel"), reason="is about a machine without it")
def test_a_missing_package_is_said_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    assert not use_liger(family_model("llama"), None, "cuda")
    assert "pip install liger-kernel" in caplog.text
