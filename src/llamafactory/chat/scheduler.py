"""The thread that owns a model: it lets requests into the running batch, in order, and steps while there is work."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ..extras.errors import UserError
from .answer import Answer, Job
from .batch import Limits, RunningBatch
from .pages import pages_for
from .requests import EngineStats, EngineStoppedError, QueueFullError, TooLongError


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .paged_model import PagedModel

Task = Callable[[], None]
BROKEN_INPUT = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)
"""What a model may raise for pixels or features that it was not made for; such a request fails, others go on."""


class Scheduler:
    """Everything that runs the model goes through here; the methods may be called from any thread."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        model: "PagedModel | None",
        write_alone: Callable[[Answer], None],
        limits: Limits,
    ) -> None:
        """`write_alone` writes an answer that cannot join a batch: any, when there is no model for batches."""
        self.tokenizer = tokenizer
        self.batch = RunningBatch(model, limits) if model else None
        self.write_alone = write_alone
        self.limits = limits
        self._changed = threading.Condition()
        self._waiting: deque[Answer] = deque()
        self._alone: Answer | None = None
        self._tasks: deque[Task] = deque()
        self._stats = EngineStats(max_running=limits.max_running, max_waiting=limits.max_waiting)
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Put a request's answers at the end of the queue; all of them or, when it is full, none."""
        answers = [Answer(job, index, self.tokenizer) for index in range(job.options.num_return_sequences)]
        if self.batch is not None and not is_lone(job) and pages_for(answers[0].length) > self.batch.pool.num_pages:
            raise TooLongError(
                f"Prompt and answer may have {answers[0].length} tokens, which is more than fits into the memory set "
                "aside for keys and values; ask for a shorter answer."
            )
        with self._changed:
            self._check_open()
            free = self.limits.max_running - len(self._running)
            if len(self._waiting) + len(answers) > free + self.limits.max_waiting:
                self._count(num_refused=1)
                raise QueueFullError(
                    f"{len(self._waiting)} answers wait already, of at most {self.limits.max_waiting}; "
                    "try again later."
                )
            self._waiting.extend(answers)
            self._count(num_requests=1, num_prompt_tokens=len(job.prompt))
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Take what is left of a request out, before the next step."""
        with self._changed:
            job.is_cancelled = True
            self._changed.notify()

    def call(self, task: Task) -> None:
        """Do something else with the model between two steps."""
        with self._changed:
            self._check_open()
            self._tasks.append(task)
            self._changed.notify()

    def stats(self) -> EngineStats:
        """Return the counters of now."""
        with self._changed:
            return replace(self._stats, num_running=len(self._running), num_waiting=len(self._waiting))

    def close(self) -> None:
        """Stop after the running step; what is unfinished fails with EngineStoppedError."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    @property
    def _running(self) -> list[Answer]:
        alone = [] if self._alone is None else [self._alone]
        return alone if self.batch is None else [*alone, *self.batch.answers]

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineStoppedError("The engine was closed; load the model again.")

    def _count(self, **more: int) -> None:
        self._stats = replace(self._stats, **{name: getattr(self._stats, name) + add for name, add in more.items()})

    def _run(self) -> None:
        try:
            while self._prepare():
                self._work()
        finally:  # also when a step fails: nobody may wait for ever
            with self._changed:
                self._is_closed = True
                left = {id(answer.job): answer.job for answer in (*self._running, *self._waiting)}
                self._waiting.clear()
            for job in left.values():
                job.sink(EngineStoppedError("The engine was closed before the answer was finished."))

    def _prepare(self) -> bool:
        """Sleep while there is nothing to do; take out what was cancelled and let in what fits. False means stop."""
        with self._changed:
            while not (self._is_closed or self._running or self._waiting or self._tasks):
                self._changed.wait()
            self._drop_cancelled()
            while self._waiting and self._start(self._waiting[0]):
                self._waiting.popleft()
        return not self._is_closed

    def _drop_cancelled(self) -> None:
        gone = [answer for answer in self._running if answer.job.is_cancelled]
        kept = [answer for answer in self._waiting if not answer.job.is_cancelled]
        self._count(num_cancelled=len(gone) + len(self._waiting) - len(kept))
        self._waiting = deque(kept)
        if self.batch is not None:
            self.batch.leave(gone)

    def _start(self, answer: Answer) -> bool:
        """Let the next one in, unless it has to wait."""
        if self._alone is not None:
            return False
        if self.batch is not None and not is_lone(answer.job):
            is_in = self.batch.join(answer)
            self._count(num_cached_tokens=answer.num_cached if is_in else 0)
            return is_in
        if not self._running:
            self._alone = answer
        return self._alone is answer

    def _work(self) -> None:
        while self._tasks:
            self._tasks.popleft()()
        if self._alone is not None:
            answer = self._alone
            try:
                self.write_alone(answer)
            except BROKEN_INPUT as error:
                if answer.job.inputs is None:
                    raise
                answer.job.sink(UserError(f"The model cannot read these media: {error}"))
            self._alone = None
            with self._changed:
                self._count(num_answer_tokens=answer.text.num_tokens, num_cancelled=int(answer.job.is_cancelled))
        elif self.batch is not None and self.batch.answers:
            num_tokens = self.batch.step()
            with self._changed:
                self._count(num_answer_tokens=num_tokens)


def is_lone(job: Job) -> bool:
    """Tell whether a job cannot join a batch: its beams, or its pixels and features, belong to a run of their own."""
    return job.options.arguments.num_beams > 1 or job.inputs is not None
