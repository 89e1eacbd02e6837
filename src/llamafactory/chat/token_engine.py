"""What the engines of other packages share: they make tokens; prompts, texts, stop texts and streams are ours.

So an answer is the same whichever engine wrote its tokens: no character is split, a stop text is never shown, and the
finish reason and log-probabilities mean the same. Every answer of a request is an order of its own, whose seed is the
one that the default engine would give it.
"""

import asyncio
import threading
from abc import abstractmethod
from collections.abc import AsyncGenerator, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ..data.template import get_template_and_fix_tokenizer
from ..extras.env import read_env
from ..extras.errors import UserError
from ..model import load_tokenizer
from .answer import Answer, Job
from .job_engine import JobEngine
from .requests import EngineStats, EngineStoppedError, FinishReason, GenerationOptions, QueueFullError
from .sampling import Ranking, seed_of


if TYPE_CHECKING:
    from ..hparams import DataArguments, GeneratingArguments, ModelArguments

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Order:
    """One answer that another engine is to write."""

    name: str
    """Nothing else has it."""
    prompt: Sequence[int]
    options: GenerationOptions
    stop_ids: tuple[int, ...]
    room: int
    """The most tokens that the answer may have."""
    seed: int | None
    adapter: str | None


class Tokens(NamedTuple):
    """The next tokens of an answer."""

    ids: Sequence[int]
    rankings: Sequence[Ranking | None]
    """One for each token."""
    finish_reason: FinishReason | None = None
    num_cached: int = 0
    """Tokens of the prompt that did not have to be computed."""


class TokenEngine(JobEngine):
    """An engine whose tokens come from elsewhere; they arrive on an event loop of its own."""

    def __init__(
        self,
        model_args: "ModelArguments",
        data_args: "DataArguments",
        generating_args: "GeneratingArguments",
        max_length: int,
    ) -> None:
        self.tokenizer = load_tokenizer(model_args)["tokenizer"]
        self.template = get_template_and_fix_tokenizer(self.tokenizer, data_args)
        self.generating_args = generating_args
        self.stop_ids = self.template.get_stop_token_ids(self.tokenizer)
        self.max_length = max_length
        env = read_env()
        self._stats = EngineStats(max_running=env.max_concurrent, max_waiting=env.max_queue)
        self._tasks: dict[int, Future[None]] = {}
        self._num_open = 0
        self._num_orders = 0
        self._is_closed = False
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()

    @abstractmethod
    def write(self, order: Order) -> AsyncGenerator[Tokens, None]:
        """Give the tokens of one answer as they come; closing the generator stops the engine.

        The last one has a finish reason. What the engine refuses is a UserError.
        """

    @abstractmethod
    def check_order(self, order: Order) -> None:
        """Refuse what the engine cannot do, before anything is written."""

    @abstractmethod
    def shut_down(self) -> None:
        """Stop the engine; no order is running any more."""

    def submit(self, job: Job) -> None:
        """Hand a job's answers to the engine, which has its own queue; beyond the bound it is refused."""
        orders = [self._order(job, index) for index in range(job.options.num_return_sequences)]
        if job.options.arguments.num_beams > 1:
            raise UserError("num_beams works with infer_backend: huggingface only; leave it out.")
        if job.options.grammar is not None:
            raise UserError("This engine makes its grammars itself; give a json_schema rather than a grammar.")
        self.check_order(orders[0])
        answers = [Answer(job, index, self.tokenizer) for index in range(len(orders))]
        with self._lock:
            if self._is_closed:
                raise EngineStoppedError("The engine was closed; load the model again.")
            limit = self._stats.max_running + self._stats.max_waiting
            if self._num_open + len(orders) > limit:
                self._count(num_refused=1)
                raise QueueFullError(
                    f"{self._num_open} answers are open already, of at most {limit}; try again later."
                )
            self._num_open += len(orders)
            self._count(num_requests=1, num_prompt_tokens=len(job.prompt))
            task = asyncio.run_coroutine_threadsafe(self._write_all(job, answers, orders), self._loop)
            self._tasks[id(job)] = task
        task.add_done_callback(lambda task: self._note_end(job, answers, task))

    def cancel(self, job: Job) -> None:
        """Stop writing the answers of a job."""
        with self._lock:
            task = self._tasks.get(id(job))
            job.is_cancelled = True
        if task is not None:
            task.cancel()

    def stats(self) -> EngineStats:
        """Return the counters of now; which of the open answers run is the engine's own affair."""
        with self._lock:
            running = min(self._num_open, self._stats.max_running)
            return replace(self._stats, num_running=running, num_waiting=self._num_open - running)

    def close(self) -> None:
        """Stop all answers, then the engine."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            tasks = [*self._tasks.values()]
        for task in tasks:
            task.cancel()
        self.run(_settle())
        self.shut_down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def run(self, work: Coroutine[Any, Any, Value]) -> Value:
        """Do something on the engine's loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _write_all(self, job: Job, answers: Sequence[Answer], orders: Sequence[Order]) -> None:
        """Write all answers of a job at once; what goes wrong with one ends all."""
        try:
            async with asyncio.TaskGroup() as group:
                for answer, order in zip(answers, orders, strict=True):
                    group.create_task(self._write(answer, order))
        except BaseExceptionGroup as errors:
            job.sink(first_error(errors))

    def _note_end(self, job: Job, answers: Sequence[Answer], task: Future[None]) -> None:
        """Count what was written; also for a job that was cancelled before it began."""
        with self._lock:
            self._tasks.pop(id(job), None)
            self._num_open -= len(answers)
            self._count(
                num_cached_tokens=sum(answer.num_cached for answer in answers),
                num_answer_tokens=sum(answer.text.num_tokens for answer in answers),
                num_cancelled=len(answers) if job.is_cancelled else 0,
            )
        if task.cancelled() and not job.is_cancelled:
            job.sink(EngineStoppedError("The engine was closed before the answer was finished."))

    async def _write(self, answer: Answer, order: Order) -> None:
        async with aclosing(self.write(order)) as parts:
            async for part in parts:
                answer.num_cached = part.num_cached
                for token, ranking in zip(part.ids, part.rankings, strict=True):
                    if answer.add(token, ranking):
                        return
                if part.finish_reason is not None:
                    answer.end(part.finish_reason)
                    return
        raise EngineStoppedError("The engine stopped before the answer was finished.")

    def _order(self, job: Job, index: int) -> Order:
        with self._lock:
            self._num_orders += 1
            name = f"answer-{self._num_orders}"
        return Order(
            name=name,
            prompt=job.prompt,
            options=job.options,
            stop_ids=tuple(sorted(job.stop_ids)),
            room=job.room,
            seed=None if job.options.seed is None else seed_of(job.options.seed, index),
            adapter=job.adapter,
        )

    def _count(self, **more: int) -> None:
        self._stats = replace(self._stats, **{name: getattr(self._stats, name) + add for name, add in more.items()})


def first_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first plain exception of a group."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _settle() -> None:
    """Wait until all other tasks of this loop that were cancelled are over."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task() and task.cancelling()]
    if others:
        await asyncio.wait(others)
