"""Log-probabilities from hidden states against plain PyTorch: values, entropies, and a gradient for every token."""

import pytest
import torch
from test_cross_entropy import HEADS, MANY_CHUNKS, ONE_CHUNK, POSITIONS, WIDTH, WORDS, drawn, targets
from torch.testing import assert_close

from llamafactory.ops.head import OutputHead
from llamafactory.ops.logprobs import linear_log_probs, linear_log_probs_reference


MEMORIES = {
    "one_chunk": ONE_CHUNK,
    "many_chunks": MANY_CHUNKS,
    "computed_twice": MANY_CHUNKS._replace(kept=0),
}


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("head", HEADS)
def test_values_and_gradients_equal_the_reference(head: str, memory: str):
    results = []
    for function in (linear_log_probs_reference, linear_log_probs):
        hidden, weight = drawn(POSITIONS, WIDTH).requires_grad_(), drawn(WORDS, WIDTH, seed=2).requires_grad_()
        options = {"with_entropy": True, "memory": MEMORIES[memory]} if function is linear_log_probs else {}
        found = function(hidden, OutputHead(weight, **HEADS[head]), targets(), **options)
        (found.logps_K * torch.linspace(-1, 2, POSITIONS)).sum().backward()
        results.append([*(part.detach() for part in found), hidden.grad, weight.grad])
    for value, reference in zip(results[1], results[0], strict=True):
        assert_close(value, reference, rtol=1e-5, atol=1e-6)


def test_backward_may_run_twice_and_given_logits_are_left_alone():
    logits = drawn(POSITIONS, WORDS).requires_grad_()
    before = logits.detach().clone()
    found = linear_log_probs(logits, OutputHead(None), targets(), memory=MANY_CHUNKS)
    (first,) = torch.autograd.grad(found.logps_K.sum(), logits, retain_graph=True)
    (second,) = torch.autograd.grad(found.logps_K.sum(), logits)
    assert torch.equal(first, second)
    assert torch.equal(logits, before)
    assert_close(found.logps_K, before.log_softmax(1).gather(1, targets()[:, None])[:, 0])
    assert found.entropies_K is None


def test_autocast_multiplies_in_its_format():
    hidden, weight = drawn(POSITIONS, WIDTH).requires_grad_(), drawn(WORDS, WIDTH, seed=2).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_log_probs(hidden, OutputHead(weight), targets())
    found.logps_K.sum().backward()
    rounded = [part.detach().bfloat16() for part in (hidden, weight)]
    assert_close(found.logps_K.detach(), linear_log_probs(rounded[0], OutputHead(rounded[1]), targets()).logps_K)
    assert hidden.grad.dtype is weight.grad.dtype is torch.float32
