"""The default engine: the model runs in this process; answers that are asked for at the same time share its steps."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..data.template import get_template_and_fix_tokenizer
from ..extras.env import read_env
from ..model import load_model, load_tokenizer
from ..model.request import Head
from .adapters import load_adapters
from .answer import Job
from .batch import Limits
from .grammar import GrammarMaker
from .job_engine import JobEngine
from .media_prompt import MediaWriter, has_media, read_bounds
from .page_memory import paged_model
from .requests import AnyRequest, ChatRequest, EngineStats
from .scheduler import Scheduler
from .scores import score_rows
from .solo import SoloWriter


if TYPE_CHECKING:
    from ..hparams import DataArguments, FinetuningArguments, GeneratingArguments, ModelArguments


class HuggingfaceEngine(JobEngine):
    """Continuous batching over transformers' models; adapters of the run are merged, so they cost nothing."""

    def __init__(
        self,
        model_args: "ModelArguments",
        data_args: "DataArguments",
        finetuning_args: "FinetuningArguments",
        generating_args: "GeneratingArguments",
    ) -> None:
        loaded = load_tokenizer(model_args)
        self.tokenizer = loaded["tokenizer"]
        self.template = get_template_and_fix_tokenizer(self.tokenizer, data_args)
        self.generating_args = generating_args
        self.can_generate = finetuning_args.stage != "rm"
        head: Head = "words" if self.can_generate else "score"
        self.model = load_model(self.tokenizer, model_args, finetuning_args, head=head)
        self.stop_ids = self.template.get_stop_token_ids(self.tokenizer)
        self.media = MediaWriter(loaded["processor"], self.template, read_bounds(model_args))
        self.grammars = GrammarMaker(self.tokenizer, self.stop_ids)
        self.max_length = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        env = read_env()
        limits = Limits(max_running=env.max_concurrent, max_waiting=env.max_queue)
        pad: Any = self.tokenizer.pad_token_id
        adapters = load_adapters(self.model, model_args)
        self.adapter_names = adapters.names if adapters else ()
        solo = SoloWriter(self.model, self.stop_ids[0] if pad is None else pad, adapters)
        is_paged = self.can_generate and bool(self.model.config.use_cache)
        paged = paged_model(self.model, limits.max_running, adapters) if is_paged else None
        self.scheduler = Scheduler(self.tokenizer, paged, solo, limits)

    def make_job(self, request: AnyRequest, sink: Any, is_streamed: bool) -> Job:
        """Make the grammar of the answer where a schema is asked for."""
        options = request.options
        if options.json_schema is not None:
            grammar = self.grammars.for_schema(options.json_schema)
            request = replace(request, options=replace(options, grammar=grammar))
        return super().make_job(request, sink, is_streamed)

    def make_prompt(self, request: AnyRequest) -> tuple[list[int], Mapping[str, Any] | None]:
        """Let the processor write the prompt where there are images, sounds or videos in it."""
        if isinstance(request, ChatRequest) and has_media(request):
            return self.media.write(request)
        return super().make_prompt(request)

    def submit(self, job: Job) -> None:
        """Put a job's answers at the end of the queue."""
        self.scheduler.submit(job)

    def cancel(self, job: Job) -> None:
        """Take a job out of the running batch."""
        self.scheduler.cancel(job)

    async def get_scores(self, texts: Sequence[str], max_length: int | None = None) -> list[float]:
        """Return a reward model's score of each text, made between two steps of whatever else runs."""
        if self.can_generate:
            return await super().get_scores(texts, max_length)
        rows = [self._encode_text(text)[:max_length] for text in texts]
        loop = asyncio.get_running_loop()
        result: asyncio.Future[list[float]] = loop.create_future()

        def task() -> None:
            scores = score_rows(self.model, rows)
            loop.call_soon_threadsafe(lambda: result.done() or result.set_result(scores))

        self.scheduler.call(task)
        return await result

    def stats(self) -> EngineStats:
        """Return the counters of now."""
        return self.scheduler.stats()

    def close(self) -> None:
        """Stop the engine's thread."""
        self.scheduler.close()
