"""LoftQ and PiSSA ahead of a run: a base and an adapter that belong together, and the scripts that write them."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_making import load, logits, tuning
from safetensors.torch import load_file

from llamafactory.extras.errors import UserError
from llamafactory.model.quantization.loftq import main_matrices, split_loftq, split_pissa


SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def script(name: str) -> Callable[[list[str]], int]:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def in_quarters(weight: torch.Tensor) -> torch.Tensor:
    """A quantizer of two bits that anyone can check: the largest number of a row, in steps of a half."""
    peak = weight.abs().amax(dim=1, keepdim=True)
    return (weight / peak * 2).round() / 2 * peak


def test_loftq_is_the_papers_algorithm_1() -> None:
    weight = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
    update = torch.zeros_like(weight).double()
    for _ in range(3):
        packed = in_quarters((weight.double() - update).float()).double()
        u, s, vh = torch.linalg.svd(weight.double() - packed, full_matrices=False)
        update = u[:, :4] @ torch.diag(s[:4]) @ vh[:4]

    split = split_loftq(weight, in_quarters, 4, 2.0, 3)

    torch.testing.assert_close(split.base_OD.double(), packed, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((2.0 * split.b_OR @ split.a_RD).double(), update, rtol=1e-4, atol=1e-5)


def test_loftq_lies_nearer_to_the_weight_than_packing_and_nearer_with_each_turn() -> None:
    weight = torch.randn(32, 48, generator=torch.Generator().manual_seed(1))

    def distance(iterations: int) -> float:
        split = split_loftq(weight, in_quarters, 8, 2.0, iterations)
        return float((weight - in_quarters(split.base_OD) - 2.0 * split.b_OR @ split.a_RD).norm())

    plain = float((weight - in_quarters(weight)).norm())
    assert distance(1) < 0.85 * plain
    assert distance(4) < distance(1)


@pytest.mark.parametrize("iterations", [-1, 16])
def test_pissa_splits_a_weight_exactly_and_takes_the_best_part(iterations: int) -> None:
    weight = torch.randn(12, 20, generator=torch.Generator().manual_seed(2))
    split = split_pissa(weight, 4, 0.5, iterations)
    torch.testing.assert_close(split.base_OD + 0.5 * split.b_OR @ split.a_RD, weight, rtol=1e-5, atol=1e-5)
    left = torch.linalg.svdvals(weight)[4:].square().sum().sqrt()
    assert float(split.base_OD.norm()) == pytest.approx(float(left), rel=1e-3)


def test_a_rank_above_the_directions_of_a_weight_is_refused() -> None:
    with pytest.raises(UserError, match="lora_rank 9 is larger"):
        main_matrices(torch.ones(8, 16), 9, 1.0)


@pytest.mark.parametrize("name", ["loftq_init", "pissa_init"])
def test_each_script_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        script(name)(["--help"])
    assert stop.value.code == 0
    assert "--lora_rank" in capsys.readouterr().out


def test_the_pissa_script_changes_the_base_and_no_answer(tiny_llama_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "pissa"
    words = ["--model_name_or_path", str(tiny_llama_dir), "--output_dir", str(target), "--lora_rank", "4"]
    assert script("pissa_init")([*words, "--pissa_iter", "-1"]) == 0

    before, after = load_file(tiny_llama_dir / "model.safetensors"), load_file(target / "model.safetensors")
    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"q_proj", "v_proj"}
    whole = load(target, adapter_name_or_path=(str(target / "pissa_init"),))
    torch.testing.assert_close(logits(whole), logits(load(tiny_llama_dir)), rtol=1e-4, atol=1e-5)
    assert script("pissa_init")(words) == 1  # the folder holds something


@pytest.mark.quantized
@pytest.mark.parametrize(("method", "bits", "share"), [("bnb", 4, 0.8), ("bnb", 8, 0.95), ("hqq", 2, 0.8)])
def test_the_loftq_script_makes_up_for_what_packing_loses(
    method: str, bits: int, share: float, wide_llama_dir: Path, tmp_path: Path
) -> None:
    """With 8 bits of bitsandbytes the tokens are rounded too, for which no adapter makes up."""
    target = tmp_path / "loftq"
    words = ["--model_name_or_path", str(wide_llama_dir), "--output_dir", str(target), "--lora_target", "all"]
    words += ["--loftq_bits", str(bits), "--quantization_method", method, "--lora_rank", "16"]
    assert script("loftq_init")(words) == 0

    packing: dict[str, Any] = {"quantization_bit": bits, "quantization_method": method}
    exact = logits(load(wide_llama_dir))
    plain = logits(load(wide_llama_dir, **packing))
    start = load(target, adapter_name_or_path=(str(target / "loftq_init"),), **packing)
    assert float((logits(start) - exact).norm()) < share * float((plain - exact).norm())
    trained = load(target, tuning(lora_rank=16), adapter_name_or_path=(str(target / "loftq_init"),), **packing)
    torch.testing.assert_close(logits(trained.eval()), logits(start), rtol=0, atol=4e-3)  # bnb answers in bfloat16
