"""The next token of one answer: from the model's scores, by the rules of its request, with a generator of its own.

What one answer draws depends on its seed and its own scores alone, never on what runs beside it, and the global random
state is not touched. Shapes: V vocabulary, C candidates in order of falling score.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .requests import GenerationOptions, TokenGrammar


NUM_HEAD = 1024  # candidates that are looked at before the whole vocabulary is sorted


class Ranking(NamedTuple):
    """Log-probabilities of the model at one place, before any rule."""

    chosen: float
    top: tuple[tuple[int, float], ...]


class TokenChooser:
    """Chooses the tokens of one answer, one after another."""

    def __init__(self, options: GenerationOptions, prompt: Sequence[int], index: int = 0) -> None:
        self.options = options
        self.counts: Counter[int] = Counter()
        self.grammar: TokenGrammar | None = options.grammar() if options.grammar else None
        penalty = options.arguments.repetition_penalty
        self._seen: dict[int, None] | None = dict.fromkeys(prompt) if penalty != 1.0 else None
        self._generator = torch.Generator()
        if options.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed_of(options.seed, index))

    @property
    def is_plain(self) -> bool:
        """Whether the highest score is all that counts."""
        options = self.options
        has_rules = options.presence_penalty or options.frequency_penalty or options.logit_bias or options.grammar
        return not (options.is_sampled or has_rules or self._seen is not None or options.logprobs is not None)

    def choose(self, scores_V: Tensor) -> tuple[int, Ranking | None]:
        """Return the next token; with its place in the model's own ranking where that was asked for."""
        token = self._draw(self._shape(scores_V.float()))
        self.take(token)
        return token, self._rank(scores_V.float(), token)

    def take(self, token: int) -> None:
        """Note a token of the answer."""
        self.counts[token] += 1
        if self._seen is not None:
            self._seen[token] = None
        if self.grammar is not None:
            self.grammar.accept(token)

    def _shape(self, scores_V: Tensor) -> Tensor:
        """Apply what acts on single tokens."""
        options, device = self.options, scores_V.device
        penalised = options.presence_penalty or options.frequency_penalty
        if options.logit_bias or self._seen is not None or (penalised and self.counts):
            scores_V = scores_V.clone()
        if options.logit_bias:
            ids, values = zip(*options.logit_bias, strict=True)
            scores_V.index_add_(0, torch.tensor(ids, device=device), torch.tensor(values, device=device))
        if self._seen is not None:
            ids = torch.tensor(list(self._seen), device=device)
            seen, penalty = scores_V[ids], options.arguments.repetition_penalty
            scores_V[ids] = torch.where(seen > 0, seen / penalty, seen * penalty)
        if penalised and self.counts:
            ids = torch.tensor(list(self.counts), device=device)
            counts = torch.tensor(list(self.counts.values()), dtype=torch.float32, device=device)
            scores_V[ids] -= options.presence_penalty + options.frequency_penalty * counts
        allowed = self.grammar.allowed() if self.grammar is not None else None
        if allowed is not None:
            size = min(len(allowed), len(scores_V))
            hidden = torch.ones(len(scores_V), dtype=torch.bool, device=device)
            hidden[:size] = ~allowed[:size].to(device)
            scores_V = scores_V.masked_fill(hidden, -torch.inf)
        return scores_V

    def _draw(self, scores_V: Tensor) -> int:
        if not self.options.is_sampled:
            return int(scores_V.argmax())
        values_C, ids_C = self._candidates(scores_V / self.options.arguments.temperature)
        shares_C = values_C.double().softmax(0).cumsum(0)
        point = torch.rand((), generator=self._generator, dtype=torch.float64).to(shares_C.device) * shares_C[-1]
        place = int(torch.searchsorted(shares_C, point, right=True))
        return int(ids_C[min(place, len(ids_C) - 1)])

    def _candidates(self, scores_V: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores and ids that may be drawn."""
        arguments, min_p = self.options.arguments, self.options.min_p
        top_k, top_p = arguments.top_k, arguments.top_p
        if not top_k and top_p >= 1 and not min_p:
            return scores_V, torch.arange(len(scores_V), device=scores_V.device)
        size = min(top_k or NUM_HEAD, len(scores_V))
        values_C, ids_C = scores_V.topk(size)
        whole = values_C if top_k else scores_V
        shares_C = (values_C - whole.logsumexp(0)).exp()
        has_all = (top_p < 1 and float(shares_C.sum()) >= top_p) or float(shares_C[-1]) < min_p * float(shares_C[0])
        if not (top_k or has_all):
            values_C, ids_C = scores_V.sort(descending=True)
            shares_C = (values_C - whole.logsumexp(0)).exp()
        kept_C = values_C > -torch.inf
        if top_p < 1:
            kept_C &= shares_C.cumsum(0) - shares_C < top_p
        if min_p:
            kept_C &= shares_C >= min_p * shares_C[0]
        kept_C[0] = True
        return values_C[kept_C], ids_C[kept_C]

    def _rank(self, scores_V: Tensor, token: int) -> Ranking | None:
        if self.options.logprobs is None:
            return None
        logps_V = scores_V.log_softmax(0)
        top = logps_V.topk(self.options.logprobs)
        ids: list[int] = top.indices.tolist()
        return Ranking(float(logps_V[token]), tuple(zip(ids, top.values.tolist(), strict=True)))


def seed_of(seed: int, index: int) -> int:
    """Return the seed of one of the answers of a request."""
    return (seed * 1_000_003 + index) % 2**63


Choice = tuple[int, Ranking | None]


def choose_tokens(scores_SV: Tensor, choosers: Sequence[TokenChooser]) -> list[Choice | Exception]:
    """Choose for many answers; those that only take the highest score are done together.

    A grammar is foreign code: what it raises stands for the choice of its answer, and the others go on.
    """
    highest: list[int] = scores_SV.argmax(-1).tolist() if any(chooser.is_plain for chooser in choosers) else []
    chosen: list[Choice | Exception] = []
    for place, chooser in enumerate(choosers):
        if chooser.is_plain:
            chosen.append((highest[place], None))
            continue
        try:
            chosen.append(chooser.choose(scores_SV[place]))
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            chosen.append(error)
    return chosen
