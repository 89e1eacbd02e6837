"""Row N5: the chunked sum against plain PyTorch, values and all gradients; row N6: closed forms on three tokens."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from llamafactory.ops.cross_entropy import Anchor, TokenLoss, linear_cross_entropy, linear_cross_entropy_reference
from llamafactory.ops.head import CPU_MEMORY, Memory, OutputHead
from llamafactory.ops.logprobs import linear_log_probs
from llamafactory.ops.token_weights import by_entropy, by_probability


POSITIONS, WIDTH, WORDS = 11, 8, 37
ONE_CHUNK = CPU_MEMORY
MANY_CHUNKS = Memory(chunk=4 * WORDS * 3, block=4 * WORDS * 2)  # three positions a chunk, in blocks of two and one


def drawn(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def targets(count: int = POSITIONS) -> Tensor:
    return torch.randint(0, WORDS, (count,), generator=torch.Generator().manual_seed(5))


def anchor(strength: float = 0.7) -> Anchor:
    return Anchor(drawn(POSITIONS, WIDTH, seed=8), OutputHead(drawn(WORDS, WIDTH, seed=9)), strength)


LOSSES = {
    "plain": TokenLoss(),
    "smoothed": TokenLoss(label_smoothing=0.1),
    "z": TokenLoss(z_loss=0.01),
    "dft": TokenLoss(reweight=by_probability),
    "eaft": TokenLoss(reweight=partial(by_entropy, exponent=1.5)),
    "asft": TokenLoss(reweight=by_probability, anchor=anchor()),
    "all": TokenLoss(label_smoothing=0.2, z_loss=0.02, reweight=by_probability, anchor=anchor()),
}
HEADS = {
    "matrix": {},
    "bias": {"bias_V": drawn(WORDS, seed=3)},
    "scaled": {"scale": 0.3},
    "capped": {"scale": 1.5, "softcap": 2.0, "bias_V": drawn(WORDS, seed=3)},
}


def gradients(function, head: OutputHead, loss: TokenLoss, weights: Tensor | None = None, **options) -> list[Tensor]:
    """Value, then the gradients of the hidden states, the weight and the bias, for a sum that is divided later."""
    hidden = drawn(POSITIONS, WIDTH).requires_grad_()
    learned = [hidden, *(part.clone().requires_grad_() for part in head[:2] if part is not None)]
    head = head._replace(**dict(zip(("weight_VD", "bias_V"), learned[1:], strict=False)))
    found = function(hidden, head, targets(), weights_K=weights, loss=loss, **options)
    (found.total / 7).backward()
    return [found.total.detach(), *(part.grad for part in learned)]


@pytest.mark.parametrize("memory", [ONE_CHUNK, MANY_CHUNKS], ids=["one_chunk", "many_chunks"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("loss", LOSSES)
def test_n5_sum_and_gradients_equal_the_reference(loss: str, head: str, memory: Memory):
    made = OutputHead(drawn(WORDS, WIDTH, seed=2), **HEADS[head])
    weights = torch.linspace(0, 2, POSITIONS)
    expected = gradients(linear_cross_entropy_reference, made, LOSSES[loss], weights)
    got = gradients(linear_cross_entropy, made, LOSSES[loss], weights, memory=memory)
    for value, reference in zip(got, expected, strict=True):
        assert_close(value, reference, rtol=1e-5, atol=1e-6)


def test_n5_given_logits_and_projections_are_the_same_as_a_matrix():
    weight, hidden = drawn(WORDS, WIDTH, seed=2), drawn(POSITIONS, WIDTH)
    expected = linear_cross_entropy_reference(hidden, OutputHead(weight, scale=0.5), targets()).total
    layer = torch.nn.Linear(WIDTH, WORDS, bias=False)
    layer.weight = torch.nn.Parameter(weight.clone())
    projected = linear_cross_entropy(hidden, OutputHead(None, scale=0.5, project=layer), targets(), memory=MANY_CHUNKS)
    logits = (hidden @ weight.t()).requires_grad_()
    before = logits.detach().clone()
    given = linear_cross_entropy(logits, OutputHead(None, scale=0.5), targets(), memory=MANY_CHUNKS)
    assert_close(projected.total, expected)
    assert_close(given.total, expected)
    assert torch.equal(logits, before)
    projected.total.backward()
    given.total.backward()
    assert_close(layer.weight.grad, logits.grad.t() @ hidden)


def test_n5_bfloat16_is_multiplied_as_it_is_and_summed_in_float32():
    hidden, weight = drawn(POSITIONS, WIDTH, dtype=torch.bfloat16), drawn(WORDS, WIDTH, seed=2, dtype=torch.bfloat16)
    hidden.requires_grad_()
    weight.requires_grad_()
    found = linear_cross_entropy(hidden, OutputHead(weight), targets(), memory=MANY_CHUNKS)
    found.total.backward()
    got = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    expected = linear_cross_entropy_reference(hidden, OutputHead(weight), targets())
    expected.total.backward()
    assert found.total.dtype is torch.float32
    assert_close(found.total, expected.total, rtol=1e-6, atol=1e-5)
    for gradient, reference in zip(got, (hidden.grad, weight.grad), strict=True):
        assert gradient.dtype is torch.bfloat16
        assert_close(gradient, reference, rtol=2e-2, atol=2e-2)


def test_autocast_multiplies_in_its_format_and_gives_gradients_in_the_weights():
    hidden, weight = drawn(POSITIONS, WIDTH).requires_grad_(), drawn(WORDS, WIDTH, seed=2).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_cross_entropy(hidden, OutputHead(weight), targets())
    found.total.backward()
    rounded = [part.detach().bfloat16() for part in (hidden, weight)]
    assert_close(found.total, linear_cross_entropy(rounded[0], OutputHead(rounded[1]), targets()).total)
    assert hidden.grad.dtype is weight.grad.dtype is torch.float32
    exact = linear_cross_entropy_reference(hidden.detach(), OutputHead(weight.detach()), targets()).total
    assert 0 < (exact - found.total.detach()).abs() < 0.05 * exact


@pytest.mark.parametrize("function", [linear_cross_entropy, linear_log_probs])
def test_nothing_is_multiplied_that_nobody_asked_for(function):
    hidden, weight = drawn(POSITIONS, WIDTH).requires_grad_(), drawn(WORDS, WIDTH, seed=2)
    products = []
    for learns, with_gradient in ((False, True), (True, True), (True, False)):
        weight.requires_grad_(learns)
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(with_gradient):
            total = function(hidden, OutputHead(weight), targets())[0].sum()
            if with_gradient:
                total.backward()
        products.append(counter.get_total_flops() / (2 * POSITIONS * WIDTH * WORDS))
        assert total.requires_grad is with_gradient
    assert products == [2, 3, 1]


def test_no_position_gives_zero_and_zero_gradients():
    hidden, weight = drawn(0, WIDTH).requires_grad_(), drawn(WORDS, WIDTH, seed=2).requires_grad_()
    total = linear_cross_entropy(hidden, OutputHead(weight), targets(0)).total
    total.backward()
    assert total == 0
    assert_close(weight.grad, torch.zeros(WORDS, WIDTH))


@pytest.mark.parametrize("memory", [ONE_CHUNK, MANY_CHUNKS], ids=["one_chunk", "many_chunks"])
def test_hits_are_counted_when_asked_for(memory: Memory):
    hidden, head = drawn(POSITIONS, WIDTH), OutputHead(drawn(WORDS, WIDTH, seed=2))
    likeliest = (hidden @ head.weight_VD.t()).argmax(dim=1)
    likeliest[:4] = (likeliest[:4] + 1) % WORDS
    assert linear_cross_entropy(hidden, head, likeliest).num_correct is None
    found = linear_cross_entropy(hidden, head, likeliest, loss=TokenLoss(counts_hits=True), memory=memory)
    assert found.num_correct == POSITIONS - 4


# three tokens whose logits are (0, 0), (ln 3, 0) and (0, ln 3); the first word is right each time
THREE = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [0.0, math.log(3)]])
NATS = [math.log(2), math.log(4 / 3), math.log(4)]  # -log p, with p = 1/2, 3/4, 1/4


def of_three(loss: TokenLoss, weights: Tensor | None = None) -> float:
    zeros = torch.zeros(3, dtype=torch.int64)
    return float(linear_cross_entropy(THREE, OutputHead(torch.eye(2)), zeros, weights_K=weights, loss=loss).total)


def test_n6_weights_multiply_the_loss_of_their_token():
    assert of_three(TokenLoss(), torch.tensor([1.0, 0.0, 0.5])) == pytest.approx(NATS[0] + 0.5 * NATS[2])


def test_n6_label_smoothing_mixes_in_the_mean_over_all_words():
    other = [math.log(2), math.log(4), math.log(4 / 3)]
    expected = sum(0.9 * right + 0.1 * (right + wrong) / 2 for right, wrong in zip(NATS, other, strict=True))
    assert of_three(TokenLoss(label_smoothing=0.1)) == pytest.approx(expected)


def test_n6_z_loss_adds_the_square_of_the_normaliser():
    expected = sum(NATS) + 0.1 * (math.log(2) ** 2 + 2 * math.log(4) ** 2)
    assert of_three(TokenLoss(z_loss=0.1)) == pytest.approx(expected)


def test_n6_dft_weighs_by_probability():
    expected = NATS[0] / 2 + 3 * NATS[1] / 4 + NATS[2] / 4
    assert of_three(TokenLoss(reweight=by_probability)) == pytest.approx(expected)


def test_n6_eaft_weighs_by_a_power_of_entropy():
    entropies = [math.log(2), *2 * [0.75 * math.log(4 / 3) + 0.25 * math.log(4)]]
    expected = sum(nats * (entropy / 3) ** 2 for nats, entropy in zip(NATS, entropies, strict=True))
    assert of_three(TokenLoss(reweight=partial(by_entropy, exponent=2.0))) == pytest.approx(expected)


def test_n6_an_anchor_adds_the_divergence_from_it():
    uniform = Anchor(torch.zeros(3, 2), OutputHead(torch.eye(2)), 0.5)
    divergence = math.log(2) - (0.75 * math.log(4 / 3) + 0.25 * math.log(4))  # of (3/4, 1/4) from (1/2, 1/2)
    assert of_three(TokenLoss(anchor=uniform)) == pytest.approx(sum(NATS) + 0.5 * 2 * divergence)


def test_eaft_counts_the_twenty_likeliest_words_only():
    even = torch.zeros(1, 50).log_softmax(dim=1)
    assert_close(by_entropy(even, even[:, 0], exponent=1.0), torch.tensor([math.log(20) / 3]))
