"""Q-GaLore: weights in 8 bits that learn, against a float64 reference written from the paper."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optimizer_papers as papers
import pytest
import torch
from torch import nn

from llamafactory.train.optimizers.eight_bits import EightBitLinear, to_eight_bits
from llamafactory.train.optimizers.galore import GaloreSettings
from llamafactory.train.optimizers.grid import from_grid, to_grid
from llamafactory.train.optimizers.q_galore import LazySettings, QGalore, likeness
from llamafactory.train.optimizers.recipe import seed_of


LR, DECAY, NUM_STEPS = 0.02, 0.1, 6


def made(layer: nn.Linear, interval: int = 2, queue_size: int = 9) -> tuple[EightBitLinear, QGalore]:
    holder = nn.Sequential(layer)
    kept = to_eight_bits(holder, {layer.weight})[layer.weight]
    groups = [{"params": [kept.weight], "lr": LR, "weight_decay": DECAY}]
    settings, lazy = GaloreSettings(3, interval, 2.0, "left"), LazySettings(0.4, queue_size, 5)
    return kept, QGalore(groups, settings, torch.optim.AdamW, {kept.weight: kept}, lazy)


def layer_of(out: int, width: int) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(width, out, bias=False)


def gradients(shape: tuple[int, ...], num: int = NUM_STEPS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    stretch = torch.linspace(3.0, 0.3, shape[0])[:, None]
    return [torch.randn(shape, generator=generator) * stretch for _ in range(num)]


def noises(num_blocks: int) -> Iterator[torch.Tensor]:
    for step in range(1, NUM_STEPS + 1):
        yield torch.rand(num_blocks, 256, generator=torch.Generator().manual_seed(seed_of(5, 0, step))).double()


def test_q_galore_is_the_papers() -> None:
    """A number that lies on the edge of two points may go either way in float32 and float64: one step of the grid."""
    layer = layer_of(24, 32)
    paper = papers.q_galore(layer.weight.detach().double(), LR, DECAY, rank=3, interval=2, scale=2.0, noises=noises(3))
    kept, optimizer = made(layer)
    expected = next(paper)
    torch.testing.assert_close(kept.whole().double(), expected, rtol=1e-5, atol=1e-6)
    for gradient in gradients((24, 32)):
        kept.weight.grad = gradient.clone()
        optimizer.step()
        expected = paper.send(gradient.double())
        gap = (kept.whole().double() - expected).abs()
        assert float(gap.max()) <= 1.01 * float(kept.grid().step.max())
        assert float((gap < 1e-4).double().mean()) > 0.97


def test_rounding_by_chance_is_right_on_average_and_to_the_nearest_is_near() -> None:
    tensor = torch.randn(512, generator=torch.Generator().manual_seed(1))
    step = float(to_grid(tensor, 8).step.max())
    nearest = from_grid(to_grid(tensor, 8), tensor.shape, 8)
    assert float((nearest - tensor).abs().max()) <= 0.51 * step
    draws = [from_grid(to_grid(tensor, 8, torch.Generator().manual_seed(n)), tensor.shape, 8) for n in range(400)]
    assert float((torch.stack(draws).mean(0) - tensor).abs().max()) < 0.12 * step
    four = from_grid(to_grid(tensor[:300], 4), tensor[:300].shape, 4)
    assert float((four - tensor[:300]).abs().max()) <= 0.51 * float(to_grid(tensor[:300], 4).step.max())
    assert to_grid(tensor, 4).codes.numel() == 256


def test_updates_far_below_a_step_add_up() -> None:
    kept, _ = made(layer_of(24, 32))
    before, step = kept.whole(), float(kept.grid().step.mean())
    for turn in range(200):
        kept.put(to_grid(kept.whole() + 0.05 * step, 8, torch.Generator().manual_seed(turn)))
    assert float((kept.whole() - before).mean()) == pytest.approx(10 * step, rel=0.1)


def test_an_interval_doubles_where_directions_stay() -> None:
    """Gradients of one direction set: found at 0, 2, 4 and, with a queue of two, 4 more steps on."""
    kept, optimizer = made(layer_of(24, 32), interval=2, queue_size=2)
    fixed = gradients((24, 32), 1)[0]
    found: list[int] = []
    for step in range(10):
        kept.weight.grad = fixed.clone()
        state = optimizer.state[kept.weight]
        is_due = not state or state["step"] == state["next"]
        optimizer.step()
        found += [step] if is_due else []
    assert found == [0, 2, 4, 8]


def test_directions_of_other_gradients_are_not_alike() -> None:
    from llamafactory.train.optimizers.projection import main_directions

    one, two = (main_directions(gradient, 3, "left") for gradient in gradients((24, 32), 2))
    assert likeness(one, one) == pytest.approx(1.0)
    assert likeness(one, two) < 0.9


def test_the_layer_is_the_plain_one_on_the_grid_and_saves_plain_weights() -> None:
    layer = nn.Linear(32, 24)
    kept = to_eight_bits(nn.Sequential(layer), {layer.weight})[layer.weight]
    x = torch.randn(2, 5, 32, requires_grad=True)
    plain = nn.Linear(32, 24)
    plain.load_state_dict(kept.state_dict())  # what is saved is an ordinary weight
    ours = torch.autograd.grad(kept(x).square().sum(), [x, kept.weight])
    theirs = torch.autograd.grad(plain(x).square().sum(), [x, plain.weight])
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert kept.weight.untyped_storage().nbytes() == 4  # a single zero
    assert kept.grid().codes.dtype == torch.uint8
    kept.double().float()
    assert kept.weight.untyped_storage().nbytes() == 4
    kept.load_state_dict(plain.state_dict())
    torch.testing.assert_close(kept.whole(), plain.weight.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("layerwise", [False, True])
def test_a_run_learns_resumes_bit_for_bit_and_saves_a_plain_model(
    layerwise: bool, tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    from llamafactory.chat import ChatModel
    from llamafactory.train.tuner import run_exp

    config: dict[str, Any] = {
        "model_name_or_path": str(tiny_llama_dir),
        "do_train": True,
        "finetuning_type": "full",
        "use_galore": True,
        "galore_quantize": True,
        "galore_layerwise": layerwise,
        "galore_rank": 8,
        "galore_update_interval": 2,
        "optim": "adamw_torch",
        "dataset": "tiny_alpaca",
        "dataset_dir": str(demo_dataset_dir),
        "cutoff_len": 96,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "max_steps": 6,
        "save_steps": 3,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
    }
    run_exp({**config, "output_dir": str(tmp_path / "whole")})
    again = {**config, "output_dir": str(tmp_path / "again")}
    run_exp({**again, "resume_from_checkpoint": str(tmp_path / "whole" / "checkpoint-3")})

    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "again"))
    start = load_file(tiny_llama_dir / "model.safetensors")
    assert whole.keys() == start.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    moved = [name for name in whole if not torch.equal(whole[name], start[name])]
    assert any("q_proj" in name for name in moved)
    if not layerwise:
        return
    chat = ChatModel({"model_name_or_path": str(tmp_path / "whole"), "max_new_tokens": 3})
    assert chat.chat([{"role": "user", "content": "Count to two."}])
