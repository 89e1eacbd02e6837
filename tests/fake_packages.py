"""vllm and sglang as far as the engines use them: the real names and signatures, over a tiny model.

Taken from the published interfaces of vLLM 0.33 and SGLang 0.5.23; an argument that the real one does not have is an
error here too. Tokens are chosen by code that shares nothing with the default engine's.
"""

import asyncio
import re
import sys
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from llamafactory.extras import packages


WORD = re.compile(r"\w+")
VLLM_ENGINE_ARGS = WORD.findall("""
    model tokenizer trust_remote_code download_dir load_format dtype kv_cache_dtype seed max_model_len
    tensor_parallel_size pipeline_parallel_size data_parallel_size enable_prefix_caching
    gpu_memory_utilization cpu_offload_gb max_num_batched_tokens max_num_seqs max_num_queued_reqs max_logprobs
    logprobs_mode disable_log_stats revision hf_token quantization enforce_eager limit_mm_per_prompt
    enable_lora max_loras max_lora_rank fully_sharded_loras generation_config enable_sleep_mode
    enable_log_requests
""")
SGLANG_SERVER_ARGS = WORD.findall("""
    model_path tokenizer_path skip_tokenizer_init trust_remote_code context_length revision dtype quantization
    kv_cache_dtype mem_fraction_static max_running_requests max_queued_requests tp_size pp_size dp_size
    random_seed download_dir sampling_defaults incremental_streaming_output stream_interval log_level
    grammar_backend attention_backend disable_cuda_graph enable_lora max_lora_rank lora_paths
    max_loras_per_batch lora_backend enable_deterministic_inference
""")
SGLANG_GENERATE = WORD.findall("""
    prompt image_data audio_data video_data return_logprob logprob_start_len top_logprobs_num token_ids_logprob
    lora_path custom_logit_processor return_hidden_states stream priority
""")
SGLANG_SAMPLING = WORD.findall("""
    max_new_tokens stop stop_token_ids stop_regex temperature top_p top_k min_p frequency_penalty
    presence_penalty repetition_penalty min_new_tokens n json_schema regex ebnf structural_tag ignore_eos
    skip_special_tokens spaces_between_special_tokens no_stop_trim stream_interval logit_bias sampling_seed
    custom_params
""")


@dataclass
class Wish:
    """What both packages are told about one answer."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])


class TinyWriter:
    """Writes tokens with a model; one token after another, everything computed anew."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval()

    @torch.no_grad()
    def next(self, prompt: list[int], answer: list[int], wish: Wish, generator: torch.Generator) -> tuple[int, Any]:
        """Return a token and the model's log-probabilities at its place."""
        scores = self.model(torch.tensor([prompt + answer])).logits[0, -1].float()
        logprobs = scores.log_softmax(0)
        for token, bias in wish.logit_bias.items():
            scores[token] += bias
        for token in set(prompt + answer):
            factor = wish.repetition_penalty
            scores[token] = scores[token] / factor if scores[token] > 0 else scores[token] * factor
        for token in set(answer):
            scores[token] -= wish.presence_penalty + wish.frequency_penalty * answer.count(token)
        if wish.temperature == 0:
            return int(scores.argmax()), logprobs
        shares, order = (scores / wish.temperature).softmax(0).sort(descending=True)
        kept = shares.cumsum(0) - shares < wish.top_p
        kept &= shares >= wish.min_p * shares[0]
        if wish.top_k > 0:
            kept[wish.top_k :] = False
        place = torch.multinomial(shares * kept, 1, generator=generator)
        return int(order[place]), logprobs


def ranked(logprobs: Any, size: int) -> list[tuple[int, float]]:
    top = logprobs.topk(size)
    return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))


# ---- vllm ----


class VLLMError(Exception):
    pass


class VLLMClientError(VLLMError):
    pass


class VLLMServerError(VLLMError):
    pass


class VLLMValidationError(VLLMClientError):
    pass


class GracefulHTTPError(VLLMError):
    pass


class RequestOutputKind(Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass
class StructuredOutputsParams:
    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


@dataclass
class SamplingParams:
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    structured_outputs: StructuredOutputsParams | None = None
    logit_bias: dict[int, float] | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 2.0:
            raise VLLMValidationError(f"temperature must be in [0, 2], got {self.temperature}.")
        if not 0.0 < self.top_p <= 1.0:
            raise VLLMValidationError(f"top_p must be in (0, 1], got {self.top_p}.")
        if self.n > 1 and self.temperature == 0:
            raise VLLMValidationError(f"n must be 1 when using greedy sampling, got {self.n}.")
        if self.stop and not self.detokenize:
            raise VLLMValidationError("stop strings are only supported when detokenize is True.")


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""
    base_model_name: str | None = None
    load_inplace: bool = False


class AsyncEngineArgs:
    def __init__(self, **options: Any) -> None:
        for name in options:
            if name not in VLLM_ENGINE_ARGS:
                raise TypeError(f"AsyncEngineArgs.__init__() got an unexpected keyword argument '{name}'")
        self.options = options


class AsyncLLMEngine:
    """One token in every output, as with `RequestOutputKind.DELTA`."""

    writers: Mapping[str, TinyWriter]
    last: "AsyncLLMEngine"

    def __init__(self, options: dict[str, Any]) -> None:
        asyncio.get_running_loop()
        AsyncLLMEngine.last = self
        self.options = options
        self.asked: list[Any] = []
        self.aborted: list[str] = []
        self.error: Exception | None = None
        self.is_down = False

    @classmethod
    def from_engine_args(
        cls,
        engine_args: AsyncEngineArgs,
        start_engine_loop: bool = True,
        usage_context: Any = None,
        stat_loggers: Any = None,
    ) -> "AsyncLLMEngine":
        return cls(engine_args.options)

    async def generate(
        self,
        prompt: Any,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        lora_request: LoRARequest | None = None,
        priority: int = 0,
    ) -> AsyncGenerator[Any, None]:
        assert set(prompt) <= {"prompt_token_ids", "multi_modal_data"}
        assert sampling_params.output_kind is RequestOutputKind.DELTA
        self.asked.append(SimpleNamespace(params=sampling_params, lora=lora_request, name=request_id))
        if self.error is not None:
            raise self.error
        writer = self.writers[lora_request.lora_path if lora_request else ""]
        params, ids = sampling_params, prompt["prompt_token_ids"]
        wish = Wish(params.temperature, params.top_p, params.top_k, params.min_p, params.seed)
        wish.presence_penalty, wish.frequency_penalty = params.presence_penalty, params.frequency_penalty
        wish.repetition_penalty, wish.logit_bias = params.repetition_penalty, params.logit_bias or {}
        answer: list[int] = []
        reason = None
        generator = seeded(params.seed)
        try:
            while reason is None:
                await asyncio.sleep(0)
                token, logprobs = writer.next(ids, answer, wish, generator)
                answer.append(token)
                if token in (params.stop_token_ids or ()):
                    reason = "stop"
                elif len(answer) >= (params.max_tokens or 16):
                    reason = "length"
                rows = None
                if params.logprobs is not None:
                    top = [*ranked(logprobs, params.logprobs), (token, float(logprobs[token]))]
                    rows = [{other: Logprob(value) for other, value in top}]
                part = SimpleNamespace(index=0, text="", token_ids=[token], logprobs=rows, finish_reason=reason)
                yield SimpleNamespace(outputs=[part], finished=reason is not None, num_cached_tokens=None)
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted += [request_id] if reason is None else []
            raise

    def shutdown(self, timeout: float | None = None) -> None:
        self.is_down = True


# ---- sglang ----


class Engine:
    """Deltas, as with `incremental_streaming_output`; two tokens in a chunk where that many are there."""

    writers: Mapping[str, TinyWriter]
    last: "Engine"

    def __init__(self, **options: Any) -> None:
        for name in options:
            if name not in SGLANG_SERVER_ARGS:
                raise TypeError(f"ServerArgs.__init__() got an unexpected keyword argument '{name}'")
        Engine.last = self
        self.options = options
        self.asked: list[Any] = []
        self.aborted: list[str] = []
        self.finish: dict[str, Any] | None = None
        self.tokenizer_manager = SimpleNamespace(abort_request=self._abort)
        self.is_down = False

    async def async_generate(self, *, input_ids: list[int], sampling_params: Any, rid: str, **options: Any) -> Any:
        if unknown := set(options) - set(SGLANG_GENERATE):
            raise TypeError(f"async_generate() got an unexpected keyword argument '{min(unknown)}'")
        for name in sampling_params:
            if name not in SGLANG_SAMPLING:
                raise TypeError(f"Unexpected keyword argument '{name}'")
        if sampling_params.get("top_k") == 0:
            raise ValueError("top_k must be -1 (disable) or at least 1, got 0.")
        assert options["stream"]
        lora = options.get("lora_path")
        num_top = options["top_logprobs_num"] if options["return_logprob"] else None
        self.asked.append(SimpleNamespace(params=sampling_params, lora=lora, name=rid))
        return self._chunks(input_ids, sampling_params, num_top, lora)

    async def _chunks(self, ids: list[int], params: Any, num_top: int | None, lora: str | None) -> Any:
        await asyncio.sleep(0)
        if self.finish is not None:
            yield {"text": "", "output_ids": [], "meta_info": {"finish_reason": self.finish}}
            return
        path = self.options["lora_paths"][lora] if lora else ""
        wish = Wish(params["temperature"], params.get("top_p", 1.0), max(params.get("top_k", 0), 0))
        wish.min_p = params.get("min_p", 0.0)
        wish.presence_penalty, wish.frequency_penalty = params["presence_penalty"], params["frequency_penalty"]
        wish.repetition_penalty = params["repetition_penalty"]
        wish.logit_bias = {int(token): value for token, value in (params["logit_bias"] or {}).items()}
        generator = seeded(params.get("sampling_seed"))
        stops = [] if params["ignore_eos"] else params["stop_token_ids"]
        answer: list[int] = []
        finish: dict[str, Any] | None = None
        num_sent = 0
        rows: list[Any] = []
        tops: list[Any] = []
        while finish is None:
            await asyncio.sleep(0)
            token, logprobs = self.writers[path].next(ids, answer, wish, generator)
            answer.append(token)
            rows.append((float(logprobs[token]), token, None))
            tops.append([(value, other, None) for other, value in ranked(logprobs, num_top or 0)])
            if token in stops:
                finish = {"type": "stop", "matched": token}
            elif len(answer) >= params["max_new_tokens"]:
                finish = {"type": "length", "length": len(answer)}
            if len(answer) % 2 and finish is None:
                continue
            meta: dict[str, Any] = {"finish_reason": finish, "cached_tokens": 0, "completion_tokens": len(answer)}
            if num_top is not None:
                meta["output_token_logprobs"] = rows[num_sent:]
                meta |= {"output_top_logprobs": tops[num_sent:]} if num_top else {}
            yield {"text": "", "output_ids": answer[num_sent:], "meta_info": meta}
            num_sent = len(answer)

    def shutdown(self) -> None:
        self.is_down = True

    def _abort(self, rid: str = "", abort_all: bool = False) -> None:
        self.aborted.append(rid)


def seeded(seed: int | None) -> torch.Generator:
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    return generator


def module(name: str, **values: Any) -> ModuleType:
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None)
    vars(made).update(values)
    return made


@contextmanager
def fake_packages(writers: Mapping[str, Any]) -> Iterator[None]:
    """Put both packages where imports find them; `writers` are models by adapter path, "" the one without."""
    AsyncLLMEngine.writers = Engine.writers = {path: TinyWriter(model) for path, model in writers.items()}
    errors = (VLLMError, VLLMClientError, VLLMServerError, VLLMValidationError, GracefulHTTPError)
    sampling = (SamplingParams, StructuredOutputsParams, RequestOutputKind)
    made = [
        module("vllm", AsyncLLMEngine=AsyncLLMEngine, AsyncEngineArgs=AsyncEngineArgs, __path__=[]),
        module("vllm.exceptions", **{error.__name__: error for error in errors}),
        module("vllm.sampling_params", **{item.__name__: item for item in sampling}),
        module("vllm.lora", __path__=[]),
        module("vllm.lora.request", LoRARequest=LoRARequest),
        module("sglang", Engine=Engine),
    ]
    with pytest.MonkeyPatch.context() as patch:
        for item in made:
            patch.setitem(sys.modules, item.__name__, item)
        packages.is_available.cache_clear()
        yield
    packages.is_available.cache_clear()
