"""The next token: every rule against its formula, draws against the distribution they are made from."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from llamafactory.chat.requests import generation_options
from llamafactory.chat.sampling import TokenChooser, choose_tokens
from llamafactory.extras.errors import UserError
from llamafactory.hparams import GeneratingArguments


SCORES = torch.tensor([1.0, 0.5, 0.2, -0.3, 2.0])
OPEN: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}


def chooser(prompt: Sequence[int] = (), index: int = 0, **options: Any) -> TokenChooser:
    return TokenChooser(generation_options(GeneratingArguments(), {**OPEN, **options}), prompt, index)


def shares(one: TokenChooser, scores: Tensor, num_draws: int = 4000) -> Tensor:
    draws = [one.choose(scores)[0] for _ in range(num_draws)]
    return torch.bincount(torch.tensor(draws), minlength=len(scores)) / num_draws


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"temperature": 0.7, "top_k": 3}, [0, 1, 4]),
        ({"top_p": 0.6}, [0, 4]),  # shares .50 .18 .11 .08 .05 in falling order: .50 < .6, so the second is in
        ({"min_p": 0.3}, [0, 4]),  # e^-1 = .37 of the likeliest, e^-1.5 = .22
    ],
    ids=str,
)
def test_draws_follow_the_shaped_distribution(options: dict[str, Any], kept: list[int]) -> None:
    found = shares(chooser(seed=0, **options), SCORES)

    expected = torch.full_like(SCORES, -torch.inf)
    expected[kept] = SCORES[kept] / options.get("temperature", 1.0)
    assert torch.allclose(found, expected.softmax(0), atol=0.03)


def test_a_nucleus_wider_than_the_first_look_is_whole() -> None:
    flat = torch.zeros(5000)

    drawn = {chooser(seed=seed, top_p=0.99).choose(flat)[0] for seed in range(400)}

    assert len(drawn) > 350
    assert chooser(seed=1, top_p=0.01).choose(SCORES)[0] == 4


def test_penalties_have_their_published_meaning() -> None:
    """OpenAI: score - count * frequency - (count > 0) * presence, of the answer alone; CTRL's covers the prompt."""
    one = chooser(do_sample=False, presence_penalty=0.6, frequency_penalty=0.5)
    assert [one.choose(SCORES)[0] for _ in range(3)] == [4, 0, 4]  # 2.0; then 0.9 < 1.0; then 0.9 > -0.1
    assert chooser([4], do_sample=False, presence_penalty=2.0).choose(SCORES)[0] == 4
    assert chooser([4], do_sample=False, repetition_penalty=2.5).choose(SCORES)[0] == 0  # 2.0 / 2.5 < 1.0
    assert chooser([4], do_sample=False, repetition_penalty=2.5).choose(-SCORES - 1.0)[0] == 3


def test_a_bias_is_added() -> None:
    assert chooser(do_sample=False, logit_bias={3: 5.0}).choose(SCORES)[0] == 3


def test_a_seed_repeats_and_each_answer_has_its_own() -> None:
    def draw(seed: int, index: int) -> list[int]:
        one = chooser(seed=seed, index=index)
        return [one.choose(SCORES)[0] for _ in range(40)]

    before = torch.random.get_rng_state()
    assert draw(7, 0) == draw(7, 0)
    assert len({tuple(draw(seed, index)) for seed in (7, 8) for index in (0, 1)}) == 4
    assert torch.equal(torch.random.get_rng_state(), before)


def test_logprobs_are_those_of_the_model() -> None:
    token, ranking = chooser(do_sample=False, logit_bias={3: 5.0}, logprobs=2).choose(SCORES)

    logps = SCORES.log_softmax(0)
    assert token == 3
    assert ranking is not None
    assert ranking.chosen == pytest.approx(float(logps[3]))
    assert [place for place, _ in ranking.top] == [4, 0]


class OnlyFirst:
    """Allows the token 1 twice, then fails."""

    def __init__(self) -> None:
        self.num_tokens = 0

    def allowed(self) -> Tensor:
        return torch.tensor([False, True])  # shorter than the vocabulary

    def accept(self, token: int) -> None:
        self.num_tokens += 1
        if self.num_tokens > 2:
            raise ValueError("too long")


def test_a_grammar_decides_and_what_it_raises_is_its_answers_alone() -> None:
    bound, free = chooser(grammar=OnlyFirst), chooser(do_sample=False)

    steps = [choose_tokens(SCORES.repeat(2, 1), [bound, free]) for _ in range(3)]

    assert [step[0] for step in steps[:2]] == [(1, None), (1, None)]
    assert isinstance(steps[2][0], ValueError)
    assert [step[1] for step in steps] == [(4, None)] * 3


@pytest.mark.parametrize("options", [{"min_p": 2.0}, {"presence_penalty": 3.0}, {"logprobs": 21}, {"n": 129}], ids=str)
def test_numbers_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"is \d+"):
        generation_options(GeneratingArguments(), options)
