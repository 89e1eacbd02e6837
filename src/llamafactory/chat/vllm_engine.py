"""The vLLM engine: its AsyncLLM runs the model in processes of its own and hands back tokens.

Written against vLLM 0.33. `ignore_eos` is always set and all stop tokens are named, so that the tokens that end an
answer are those of the template and no others; texts are made here, so vLLM does not detokenize.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any

from ..extras.device import device_facts
from ..extras.errors import UserError
from ..extras.packages import require
from ..model.sources import resolve_model
from .outer_adapters import find_outer_adapters
from .requests import MAX_LOGPROBS, EngineStoppedError, FinishReason, QueueFullError
from .sampling import Ranking
from .token_engine import Order, TokenEngine, Tokens


if TYPE_CHECKING:
    from ..hparams import DataArguments, FinetuningArguments, GeneratingArguments, ModelArguments

PURPOSE = "infer_backend: vllm"
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The room for ranks that vLLM can make."""
REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


class VllmEngine(TokenEngine):
    """Answers written by vLLM."""

    def __init__(
        self,
        model_args: "ModelArguments",
        data_args: "DataArguments",
        finetuning_args: "FinetuningArguments",
        generating_args: "GeneratingArguments",
    ) -> None:
        self.vllm: Any = require("vllm", "vllm", PURPOSE)
        adapters = find_outer_adapters(model_args)
        self.adapter_names = adapters.named
        self.own_adapter = adapters.own
        super().__init__(model_args, data_args, generating_args, model_args.vllm_maxlen)
        request: Any = require("vllm.lora.request", "vllm", PURPOSE).LoRARequest
        self.lora_requests: dict[str, Any] = {
            name: request(lora_name=name, lora_int_id=number, lora_path=str(folder))
            for number, (name, folder) in enumerate(adapters.folders.items(), 1)
        }
        self.sampling: Any = require("vllm.sampling_params", "vllm", PURPOSE)
        self.errors: Any = require("vllm.exceptions", "vllm", PURPOSE)
        self.engine: Any = self.run(self._start(engine_options(model_args, adapters.folders, adapters.highest_rank)))

    async def write(self, order: Order) -> AsyncGenerator[Tokens, None]:
        """Give the tokens of one answer; closing the generator makes vLLM abort the request."""
        lora = self.lora_requests.get(order.adapter or self.own_adapter or "")
        outputs = self.engine.generate(
            {"prompt_token_ids": list(order.prompt)}, self._sampling_params(order), order.name, lora_request=lora
        )
        try:
            async for output in outputs:
                yield read_output(output, order.options.logprobs)
        except self.errors.VLLMClientError as error:
            raise UserError(f"vLLM refuses the request: {error}") from error
        except self.errors.GracefulHTTPError as error:
            raise QueueFullError(f"vLLM has no room for the request: {error}") from error
        except self.errors.VLLMServerError as error:
            raise EngineStoppedError(f"vLLM cannot go on: {error}") from error
        finally:
            await outputs.aclose()

    def check_order(self, order: Order) -> None:
        """Let vLLM check the options."""
        try:
            self._sampling_params(order)
        except (self.errors.VLLMClientError, ValueError) as error:
            raise UserError(f"vLLM refuses the request: {error}") from error

    def shut_down(self) -> None:
        """Stop vLLM's processes."""
        self.engine.shutdown()

    async def _start(self, options: dict[str, Any]) -> Any:
        """Load the model; on the loop that will read its outputs, as vLLM's own server does."""
        try:
            return self.vllm.AsyncLLMEngine.from_engine_args(self.vllm.AsyncEngineArgs(**options))
        except (TypeError, ValueError, self.errors.VLLMClientError) as error:
            raise UserError(f"vLLM does not start with these settings: {error}") from error

    def _sampling_params(self, order: Order) -> Any:
        options, arguments = order.options, order.options.arguments
        drawn: dict[str, Any] = {"temperature": 0.0}
        if options.is_sampled:
            drawn = {"temperature": arguments.temperature, "top_p": arguments.top_p, "top_k": arguments.top_k}
            drawn |= {"min_p": options.min_p, "seed": order.seed}
        schema = options.json_schema
        return self.sampling.SamplingParams(
            **drawn,
            n=1,
            presence_penalty=options.presence_penalty,
            frequency_penalty=options.frequency_penalty,
            repetition_penalty=arguments.repetition_penalty,
            max_tokens=order.room,
            stop_token_ids=list(order.stop_ids),
            ignore_eos=True,
            logprobs=options.logprobs,
            logit_bias=dict(options.logit_bias) or None,
            structured_outputs=self.sampling.StructuredOutputsParams(json=schema) if schema is not None else None,
            detokenize=False,
            output_kind=self.sampling.RequestOutputKind.DELTA,
        )


def engine_options(model_args: "ModelArguments", adapters: Any, highest_rank: int) -> dict[str, Any]:
    """Return what AsyncEngineArgs takes; `vllm_config` comes last, so it can change everything."""
    given = model_args.vllm_config or {}
    num_stages = int(given.get("pipeline_parallel_size", 1))
    options: dict[str, Any] = {
        "model": str(resolve_model(model_args.model_name_or_path, model_args)),
        "trust_remote_code": model_args.trust_remote_code,
        "download_dir": model_args.cache_dir,
        "revision": model_args.model_revision if model_args.model_revision != "main" else None,
        "hf_token": model_args.hf_hub_token,
        "dtype": model_args.infer_dtype,
        "max_model_len": model_args.vllm_maxlen,
        "gpu_memory_utilization": model_args.vllm_gpu_util,
        "enforce_eager": model_args.vllm_enforce_eager,
        "tensor_parallel_size": max(device_facts().count // num_stages, 1),
        "max_logprobs": MAX_LOGPROBS,
        "generation_config": "vllm",  # a model's own temperature must not come between ours and the answer
        "disable_log_stats": True,
    }
    if adapters:
        options |= {"enable_lora": True, "max_loras": len(adapters)}
        options["max_lora_rank"] = lora_room(model_args.vllm_max_lora_rank, highest_rank)
    return options | given


def lora_room(wanted: int, highest_rank: int) -> int:
    """Return the smallest room that vLLM can make for the wanted rank; an adapter beyond it is refused."""
    if highest_rank > wanted:
        raise UserError(f"The adapter has rank {highest_rank}; set vllm_max_lora_rank to at least that.")
    room = next((rank for rank in RANKS if rank >= wanted), None)
    if room is None:
        raise UserError(f"vllm_max_lora_rank is {wanted}; vLLM goes up to {RANKS[-1]}.")
    return room


def read_output(output: Any, num_top: int | None) -> Tokens:
    """Read one RequestOutput, which holds what is new since the last."""
    (part,) = output.outputs
    if part.finish_reason is not None and part.finish_reason not in REASONS:
        raise EngineStoppedError(f"vLLM ended the answer: {part.finish_reason}.")
    ids: list[int] = list(part.token_ids)
    rankings: Sequence[Ranking | None] = [None] * len(ids)
    if num_top is not None:
        rankings = [read_ranking(token, row, num_top) for token, row in zip(ids, part.logprobs, strict=True)]
    reason = REASONS[part.finish_reason] if part.finish_reason is not None else None
    return Tokens(ids, rankings, reason, output.num_cached_tokens or 0)


def read_ranking(token: int, row: Any, num_top: int) -> Ranking:
    """Read {token: Logprob} of one place; the chosen token is in it even where it is not among the likeliest."""
    ranked = sorted(((other, float(entry.logprob)) for other, entry in row.items()), key=lambda pair: -pair[1])
    return Ranking(float(row[token].logprob), tuple(ranked[:num_top]))
