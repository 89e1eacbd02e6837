"""The default engine: `generate` of transformers in a worker thread, one request at a time."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ..data.template import get_template_and_fix_tokenizer
from ..extras.errors import UserError
from ..model import load_model, load_tokenizer
from .answer_text import AnswerText
from .base_engine import BaseEngine
from .requests import ChatRequest, GenerationOptions, Response, StreamChunk
from .sampling import build_sampler


if TYPE_CHECKING:
    from ..hparams import DataArguments, FinetuningArguments, GeneratingArguments, ModelArguments


class HuggingfaceEngine(BaseEngine):
    """Runs the model in this process; adapters are merged, so decoding costs what the base model costs."""

    def __init__(
        self,
        model_args: "ModelArguments",
        data_args: "DataArguments",
        finetuning_args: "FinetuningArguments",
        generating_args: "GeneratingArguments",
    ) -> None:
        self.tokenizer = load_tokenizer(model_args)["tokenizer"]
        self.template = get_template_and_fix_tokenizer(self.tokenizer, data_args)
        self.generating_args = generating_args
        self.model = load_model(self.tokenizer, model_args, finetuning_args)
        self.stop_ids = self.template.get_stop_token_ids(self.tokenizer)
        self._one_at_a_time = asyncio.Lock()

    async def chat(self, request: ChatRequest) -> list[Response]:
        """Generate all answers of the request in one batch."""
        prompt = self.encode_prompt(request)
        async with self._one_at_a_time:
            rows = await self._in_thread(prompt, request.options, None, threading.Event())
        return [self._response(row, len(prompt), request.options) for row in rows]

    async def stream_chat(self, request: ChatRequest) -> AsyncGenerator[StreamChunk, None]:
        """Give the answer as it is made; beams are followed to their end first, so they come in one piece."""
        prompt = self.encode_prompt(request)
        tokens: asyncio.Queue[int | None] = asyncio.Queue()
        cancelled = threading.Event()
        answer = self._answer_text(request.options)
        async with self._one_at_a_time:
            work = asyncio.ensure_future(self._feed(prompt, request.options, tokens, cancelled))
            try:
                while (token := await tokens.get()) is not None and not answer.is_stopped:
                    if text := answer.add(token):
                        yield StreamChunk(text, answer.num_tokens, len(prompt))
                cancelled.set()
                await work  # raises what went wrong in the thread
                yield StreamChunk(answer.finish(), answer.num_tokens, len(prompt), answer.finish_reason)
            finally:
                cancelled.set()
                await asyncio.wait([work])

    async def _feed(
        self,
        prompt: list[int],
        options: GenerationOptions,
        tokens: "asyncio.Queue[int | None]",
        cancelled: threading.Event,
    ) -> None:
        """Put the tokens of the answer into the queue as they come, and None behind them, whatever happens."""
        loop = asyncio.get_running_loop()
        try:
            if options.arguments.num_beams > 1:
                for token in (await self._in_thread(prompt, options, None, cancelled))[0]:
                    tokens.put_nowait(token)
            else:
                streamer = TokenStreamer(lambda token: loop.call_soon_threadsafe(tokens.put_nowait, token))
                await self._in_thread(prompt, options, streamer, cancelled)
        finally:
            tokens.put_nowait(None)

    async def _in_thread(
        self,
        prompt: list[int],
        options: GenerationOptions,
        streamer: "TokenStreamer | None",
        cancelled: threading.Event,
    ) -> list[list[int]]:
        return await asyncio.to_thread(self._generate, prompt, options, streamer, cancelled)

    def _generate(
        self,
        prompt: list[int],
        options: GenerationOptions,
        streamer: "TokenStreamer | None",
        cancelled: threading.Event,
    ) -> list[list[int]]:
        """Return the new ids of every answer, padding and what follows a stop id included."""
        num_rows = 1 if streamer is not None else options.num_return_sequences
        is_beam = options.arguments.num_beams > 1
        input_ids = torch.tensor([prompt] * (1 if is_beam else num_rows), device=self.model.device)
        model: Any = self.model  # transformers' stubs hide generate
        with torch.inference_mode():
            output = model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                generation_config=self._generation_config(len(prompt), options),
                logits_processor=build_sampler(options, self.model.device) if not is_beam else None,
                stopping_criteria=StoppingCriteriaList([StopWatch(self, options, len(prompt), cancelled)]),
                streamer=streamer,
            )
        rows: list[list[int]] = output[:, len(prompt) :].tolist()
        return rows

    def _generation_config(self, prompt_length: int, options: GenerationOptions) -> GenerationConfig:
        """Sampling is left to our own processor, so for transformers every search is greedy or by beams."""
        arguments = options.arguments
        is_beam = arguments.num_beams > 1
        pad = self.tokenizer.pad_token_id
        return GenerationConfig(
            do_sample=False,
            num_beams=arguments.num_beams,
            num_return_sequences=options.num_return_sequences if is_beam else 1,
            max_new_tokens=self._room_for_answer(prompt_length, options),
            repetition_penalty=arguments.repetition_penalty,
            length_penalty=arguments.length_penalty if is_beam else None,
            eos_token_id=self.stop_ids,
            pad_token_id=self.stop_ids[0] if pad is None else pad,
            use_cache=self.model.config.use_cache,
        )

    def _room_for_answer(self, prompt_length: int, options: GenerationOptions) -> int:
        """How many tokens the answer may have, within what was asked for and what the model can read."""
        arguments = options.arguments
        asked = arguments.max_new_tokens or arguments.max_length - prompt_length
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        room = asked if limit is None else min(asked, limit - prompt_length)
        if room < 1:
            bound = f"max_length {arguments.max_length}" if asked < 1 else f"the model's limit of {limit}"
            raise UserError(f"The conversation has {prompt_length} tokens, which leaves no room within {bound}.")
        return room

    def _answer_text(self, options: GenerationOptions) -> AnswerText:
        return AnswerText(
            self.tokenizer,
            self.stop_ids,
            options.stop,
            skip_special_tokens=options.arguments.skip_special_tokens,
        )

    def _response(self, row: list[int], prompt_length: int, options: GenerationOptions) -> Response:
        answer = self._answer_text(options)
        text = "".join(answer.add(token) for token in row) + answer.finish()
        return Response(text, answer.num_tokens, prompt_length, answer.finish_reason)


class TokenStreamer(BaseStreamer):
    """Hands every new token on; the first call of `generate` brings the prompt, which is not part of the answer."""

    def __init__(self, emit: Callable[[int], Any]) -> None:
        self.emit = emit
        self.has_prompt = False

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, then one token at a time."""
        if self.has_prompt:
            for token in value.flatten().tolist():
                self.emit(token)
        self.has_prompt = True

    def end(self) -> None:
        """Nothing is held back here."""


class StopWatch(StoppingCriteria):
    """Ends the work when nobody waits for it any more, and ends a row whose text holds a stop text."""

    def __init__(
        self, engine: HuggingfaceEngine, options: GenerationOptions, prompt_length: int, cancelled: threading.Event
    ) -> None:
        self.engine = engine
        self.options = options
        self.prompt_length = prompt_length
        self.cancelled = cancelled
        # A token adds at least one byte to the text, unless it is left out of it.
        self.num_tail = max((len(text.encode()) for text in options.stop), default=0) + 8

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        """Say for every row whether it is done."""
        done = torch.full((input_ids.shape[0],), self.cancelled.is_set(), device=input_ids.device)
        if self.options.stop and not self.cancelled.is_set():
            start = max(self.prompt_length, input_ids.shape[1] - self.num_tail)
            texts = self.engine.tokenizer.batch_decode(input_ids[:, start:], skip_special_tokens=True)
            hits = [any(stop in text for stop in self.options.stop) for text in texts]
            done = torch.tensor(hits, device=input_ids.device)
        return done
