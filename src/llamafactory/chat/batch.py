"""The running batch: answers that are written together, one token of each in every step.

A step reads the newest token of every answer and, beside them, parts of the prompts of those that have just joined,
so that a long prompt does not hold the others up for long.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..ops.paged_attention import PAGE
from .answer import Answer
from .paged_model import PagedModel, Segment
from .pages import PagePool, pages_for
from .sampling import Choice, choose_tokens


@dataclass(frozen=True)
class Limits:
    """How much is done at once."""

    max_running: int = 16
    """Answers that are written together."""
    max_waiting: int = 256
    """Answers that may wait for their turn."""
    step_tokens: int = 256
    """Tokens of prompts that are read in one step while answers are being written."""
    idle_tokens: int = 2048
    """The same while none is."""


class RunningBatch:
    """Answers with their pages; used by the engine's thread alone."""

    def __init__(self, model: PagedModel, limits: Limits) -> None:
        self.model = model
        self.limits = limits
        self.pool = PagePool(model.num_pages)
        self.answers: list[Answer] = []
        config = getattr(model.model, "generation_config", None)
        self.silent: list[int] = list(getattr(config, "suppress_tokens", None) or ())
        """Rows of the output layer that stand for no token, among others (model/vocabulary.py)."""

    def join(self, answer: Answer) -> bool:
        """Let an answer in when there are pages for its longest form; False when it has to wait.

        Answers of one request wait until the first of them has read the prompt, and share its pages then.
        """
        job = answer.job
        if len(self.answers) >= self.limits.max_running or (answer.index and not job.is_read):
            return False
        shared = self.pool.share_prefix(job.prompt, job.adapter)
        needed = pages_for(answer.length) - len(shared)
        promised = sum(pages_for(other.length) - len(other.pages) for other in self.answers)
        if needed + promised > self.pool.num_available:
            self.pool.release(shared)
            return False
        answer.pages = shared
        answer.num_stored = answer.num_cached = len(shared) * PAGE
        self.answers.append(answer)
        return True

    def leave(self, answers: Sequence[Answer]) -> None:
        """Take answers out and give their pages back."""
        for answer in answers:
            self.answers.remove(answer)
            self.pool.release(answer.pages)
            answer.pages = []

    def step(self) -> int:
        """Run the model once, tell the readers what came, let finished answers leave; return how many tokens came."""
        parts = self._plan()
        scores_SV = self.model.step([self._segment(answer, size) for answer, size in parts])
        if self.silent:
            scores_SV = scores_SV.index_fill(1, torch.tensor(self.silent, device=scores_SV.device), -torch.inf)
        for answer, size in parts:
            answer.num_stored += size
        writers = [answer for answer, _ in parts if not answer.is_reading]
        for answer in writers:
            if not answer.job.is_read:
                answer.job.is_read = True
                self.pool.publish(answer.job.prompt, answer.pages, answer.job.adapter)
        chosen = choose_tokens(scores_SV, [answer.chooser for answer in writers])
        self.leave([answer for answer, choice in zip(writers, chosen, strict=True) if is_over(answer, choice)])
        return len(writers)

    def _plan(self) -> list[tuple[Answer, int]]:
        """Choose who takes part, and with how many tokens; who joined first reads first."""
        writers = [(answer, 1) for answer in self.answers if not answer.is_reading]
        room = self.limits.step_tokens if writers else self.limits.idle_tokens
        readers: list[tuple[Answer, int]] = []
        for answer in self.answers:
            size = min(len(answer.job.prompt) - answer.num_stored, room)
            if answer.is_reading and size > 0:
                readers.append((answer, size))
                room -= size
        return writers + readers

    def _segment(self, answer: Answer, size: int) -> Segment:
        start, end = answer.num_stored, answer.num_stored + size
        answer.pages += self.pool.take(pages_for(end) - len(answer.pages))
        is_prompt = answer.is_reading
        tokens = answer.job.prompt[start:end] if is_prompt else [answer.last]
        return Segment(tokens, start, answer.pages, end >= len(answer.job.prompt), is_prompt, answer.job.adapter)


def is_over(answer: Answer, choice: Choice | Exception) -> bool:
    """Give an answer its next token, or its reader the reason why there is none."""
    if isinstance(choice, Exception):
        answer.job.sink(choice)
        answer.job.is_cancelled = True
        return True
    return answer.add(*choice)
