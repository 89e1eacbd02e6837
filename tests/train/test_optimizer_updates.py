"""Every optimizer of this package does what its paper says: its weights against a float64 reference, step by step."""

from typing import Any

import optimizer_papers as papers
import pytest
import torch
from torch import nn

from llamafactory.train.optimizers.adam_mini import AdamMini, count_blocks
from llamafactory.train.optimizers.apollo import Apollo, ApolloSettings
from llamafactory.train.optimizers.badam import LayerBadam, RatioBadam, Turns
from llamafactory.train.optimizers.galore import Galore, GaloreSettings
from llamafactory.train.optimizers.projection import main_directions, random_directions
from llamafactory.train.optimizers.recipe import AdamSettings, seed_of


ADAM = AdamSettings(papers.BETAS, papers.EPS)
LR, DECAY = 0.02, 0.1
NUM_STEPS = 6
SHAPES = [(6, 10), (10, 6)]


def start(shape: tuple[int, int], number: int = 0) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(number)))


def gradients(shape: tuple[int, ...]) -> list[torch.Tensor]:
    """Gradients whose singular values lie apart, as those of a model do."""
    generator = torch.Generator().manual_seed(7)
    stretch = torch.linspace(3.0, 0.3, shape[-1])
    return [torch.randn(shape, generator=generator) * stretch for _ in range(NUM_STEPS)]


def groups(*weights: nn.Parameter) -> list[dict[str, Any]]:
    return [{"params": list(weights), "lr": LR, "weight_decay": DECAY}]


def assert_follows(optimizer: torch.optim.Optimizer, weight: nn.Parameter, paper: papers.Steps) -> None:
    expected = next(paper)
    for gradient in gradients(tuple(weight.shape)):
        weight.grad = gradient.clone()
        optimizer.step()
        expected = paper.send(gradient.double())
        torch.testing.assert_close(weight.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["std", "reverse_std", "left", "right", "full"])
@pytest.mark.parametrize("shape", SHAPES)
def test_galore_is_the_papers(shape: tuple[int, int], kind: str) -> None:
    weight = start(shape)
    paper = papers.galore(weight.detach().double(), LR, DECAY, rank=3, interval=2, scale=2.0, kind=kind)
    optimizer = Galore(groups(weight), GaloreSettings(3, 2, 2.0, kind), torch.optim.AdamW)
    assert_follows(optimizer, weight, paper)


def test_galore_at_full_rank_and_scale_1_is_adam_in_a_turned_space() -> None:
    """Nothing is lost by the projection itself: P P^T G is G."""
    gradient = gradients((6, 10))[0]
    whole = main_directions(gradient, 6, "std")
    torch.testing.assert_close(whole.up(whole.down(gradient)), gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_scaled_first", [False, True])
@pytest.mark.parametrize("scale_type", ["channel", "tensor"])
@pytest.mark.parametrize("shape", SHAPES)
def test_apollo_is_the_papers(shape: tuple[int, int], scale_type: str, is_scaled_first: bool) -> None:
    weight = start(shape)
    settings = ApolloSettings(3, 2, 9.0, "random", "std", scale_type, is_scaled_first, seed=5)
    drawn = [random_directions(weight.shape, 3, "std", seed_of(5, 1, step)) for step in range(0, NUM_STEPS, 2)]
    parts = [item.left_MR if item.right_NR is None else item.right_NR for item in drawn]
    paper = papers.apollo(
        weight.detach().double(),
        LR,
        DECAY,
        directions=[part.T.double() for part in parts if part is not None],
        interval=2,
        scale=9.0,
        scale_type=scale_type,
        is_scaled_first=is_scaled_first,
    )
    assert_follows(Apollo(groups(weight), settings, ADAM), weight, paper)


def test_random_directions_keep_lengths_on_average() -> None:
    """Entries of variance 1 / rank: E |P x|^2 = |x|^2, on which APOLLO's factors rest."""
    drawn = random_directions(torch.Size((64, 4000)), 16, "std", seed=3)
    assert drawn.left_MR is not None
    x = torch.ones(64, 4000)
    ratio = float(drawn.down(x).norm() / x.norm())
    assert 0.7 < ratio < 1.3


@pytest.mark.parametrize("num_blocks", [2, 6])
def test_adam_mini_is_the_papers(num_blocks: int) -> None:
    weight = start((6, 10))
    paper = papers.adam_mini(weight.detach().double(), LR, DECAY, num_blocks=num_blocks)
    assert_follows(AdamMini(groups(weight), {weight: num_blocks}, ADAM), weight, paper)


def test_adam_mini_cuts_queries_by_head_and_the_rest_by_neuron(tiny_llama: Any) -> None:
    model = tiny_llama()
    counts = {
        name.rpartition(".")[0].rpartition(".")[2]: count_blocks(name, tensor, model)
        for name, tensor in model.named_parameters()
        if tensor.dim() > 1
    }
    assert counts["q_proj"] == 4
    assert counts["k_proj"] == 2
    assert counts["v_proj"] == 16
    assert counts["down_proj"] == 32
    assert counts["embed_tokens"] == model.config.vocab_size


@pytest.mark.parametrize("shape", SHAPES)
def test_muon_is_the_papers(shape: tuple[int, int]) -> None:
    """torch runs the Newton-Schulz steps in bfloat16, so directions agree to two digits; the rest is exact."""
    weight = start(shape)
    paper = papers.muon(weight.detach().double(), LR, 0.0)
    expected = next(paper)
    optimizer = torch.optim.Muon(
        [{"params": [weight], "lr": LR, "weight_decay": 0.0}], momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for gradient in gradients(shape):
        weight.grad = gradient.clone()
        before, reference = weight.detach().clone(), expected
        optimizer.step()
        expected = paper.send(gradient.double())
        moved, wanted = weight.detach() - before, expected - reference
        assert float((moved - wanted).norm() / wanted.norm()) < 0.05


def blocks_of(*sizes: int) -> list[list[nn.Parameter]]:
    return [[start((size, 4), size)] for size in sizes]


def test_badam_is_adam_on_one_block_which_starts_anew() -> None:
    blocks = blocks_of(2, 3)
    weights = [weight for block in blocks for weight in block]
    optimizer = LayerBadam(groups(*weights), blocks, Turns(2, 2, "ascending", 0, 0), ADAM)
    for turn in range(4):
        weight, other = weights[turn % 2], weights[1 - turn % 2]
        assert (weight.requires_grad, other.requires_grad) == (True, False)
        untouched = other.detach().clone()
        paper = papers.adamw(weight.detach().double(), LR, DECAY)
        next(paper)
        for gradient in gradients(tuple(weight.shape))[:2]:
            weight.grad = gradient.clone()
            optimizer.step()
            torch.testing.assert_close(weight.double(), paper.send(gradient.double()), rtol=1e-4, atol=1e-5)
        assert torch.equal(other, untouched)
        assert weight.grad is None
        assert not optimizer.state


def test_badam_keeps_float32_copies_of_short_weights() -> None:
    """N42: with bfloat16 weights, updates far below a rounding step add up."""
    weight = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    optimizer = LayerBadam(
        [{"params": [weight], "lr": 1e-4, "weight_decay": 0.0}], [[weight]], Turns(1, -1, "fixed", 0, 0), ADAM
    )
    for _ in range(200):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    torch.testing.assert_close(weight.float(), torch.full((4, 4), 0.98), rtol=0, atol=4e-3)


def test_the_order_of_blocks() -> None:
    def order(mode: str, start_block: int, interval: int = 1) -> list[int]:
        return [Turns(3, interval, mode, start_block, 1).block(step) for step in range(6)]

    assert order("ascending", 0) == [0, 1, 2, 0, 1, 2]
    assert order("ascending", 2) == [2, 0, 1, 2, 0, 1]
    assert order("descending", 2) == [2, 1, 0, 2, 1, 0]
    assert order("fixed", 1) == [1] * 6
    assert order("ascending", 1, interval=-1) == [1] * 6
    assert order("ascending", 0, interval=2) == [0, 0, 1, 1, 2, 2]
    drawn = order("random", 0)
    assert sorted(drawn[:3]) == sorted(drawn[3:]) == [0, 1, 2]


@pytest.mark.parametrize("is_adjacent", [True, False])
def test_badam_by_ratio_is_adam_on_a_share_of_the_numbers(is_adjacent: bool) -> None:
    weight = start((8, 10))
    optimizer = RatioBadam(groups(weight), 0.25, is_adjacent, Turns(1, 3, "fixed", 0, 0), ADAM)
    begin = weight.detach().clone()
    paper = papers.adamw(begin.double(), LR, DECAY)
    next(paper)
    expected = begin.double()
    for gradient in gradients((8, 10))[:3]:
        weight.grad = gradient.clone()
        optimizer.step()
        expected = paper.send(gradient.double())
    moved = weight.detach() != begin
    assert int(moved.sum()) == 20
    torch.testing.assert_close(weight.detach()[moved].double(), expected[moved], rtol=1e-4, atol=1e-5)
    places = moved.flatten().nonzero().flatten()
    assert bool((places.diff() == 1).all()) == is_adjacent

    shares = {tuple(moved.flatten().tolist())}
    for _ in range(3):
        second = weight.detach().clone()
        for gradient in gradients((8, 10))[:3]:
            weight.grad = gradient.clone()
            optimizer.step()
        shares.add(tuple((weight.detach() != second).flatten().tolist()))
    assert len(shares) > 2
