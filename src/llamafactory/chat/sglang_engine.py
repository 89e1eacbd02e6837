"""The SGLang engine: its offline Engine runs the model in processes of its own and hands back tokens.

Written against SGLang 0.5.23. The engine is used in this process rather than started as a server: there is no port, no
second HTTP layer, and no address that somebody else could reach.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from ..extras.device import device_facts
from ..extras.env import set_defaults
from ..extras.errors import UserError
from ..extras.packages import require
from ..model.sources import resolve_model
from .outer_adapters import find_outer_adapters
from .requests import EngineStoppedError, FinishReason, QueueFullError
from .sampling import Ranking
from .token_engine import Order, TokenEngine, Tokens


if TYPE_CHECKING:
    from ..hparams import DataArguments, FinetuningArguments, GeneratingArguments, ModelArguments

PURPOSE = "infer_backend: sglang"
OWNED = ("incremental_streaming_output", "lora_paths", "model_path", "skip_tokenizer_init")
"""Server arguments that `sglang_config` cannot change, as what is read here depends on them."""
LOGPROBS_OF_THE_MODEL = {"SGLANG_RETURN_ORIGINAL_LOGPROB": "true"}
"""Otherwise they would be those after the temperature, read when SGLang is imported."""
REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
MAX_REPETITION = 2.0
TOO_MANY = 503


class SglangEngine(TokenEngine):
    """Answers written by SGLang."""

    def __init__(
        self,
        model_args: "ModelArguments",
        data_args: "DataArguments",
        finetuning_args: "FinetuningArguments",
        generating_args: "GeneratingArguments",
    ) -> None:
        set_defaults(LOGPROBS_OF_THE_MODEL)
        package: Any = require("sglang", "sglang", PURPOSE)
        adapters = find_outer_adapters(model_args)
        self.adapter_names = adapters.named
        self.own_adapter = adapters.own
        options = engine_options(model_args, {name: str(folder) for name, folder in adapters.folders.items()})
        self.can_seed = bool(options.get("enable_deterministic_inference"))
        super().__init__(model_args, data_args, generating_args, model_args.sglang_maxlen)
        try:
            self.engine: Any = package.Engine(**options)
        except (TypeError, ValueError) as error:
            raise UserError(f"SGLang does not start with these settings: {error}") from error

    async def write(self, order: Order) -> AsyncGenerator[Tokens, None]:
        """Give the tokens of one answer; leaving early makes SGLang abort the request."""
        num_top = order.options.logprobs
        is_over = False
        try:
            outputs = await self.engine.async_generate(
                input_ids=list(order.prompt),
                sampling_params=sampling_params(order),
                return_logprob=num_top is not None,
                logprob_start_len=-1,
                top_logprobs_num=num_top or 0,
                lora_path=order.adapter or self.own_adapter,
                stream=True,
                rid=order.name,
            )
            async with aclosing(outputs):
                async for output in outputs:
                    is_over = output["meta_info"]["finish_reason"] is not None
                    yield read_output(output, num_top)
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"SGLang refuses the request: {error}") from error
        finally:
            if not is_over:
                self.engine.tokenizer_manager.abort_request(rid=order.name)

    def check_order(self, order: Order) -> None:
        """Refuse what SGLang would ignore or what it cannot do."""
        if order.seed is not None and order.options.is_sampled and not self.can_seed:
            raise UserError(
                "SGLang repeats a seeded answer only when it is started with "
                "`sglang_config: {enable_deterministic_inference: true}`; leave the seed out."
            )
        if order.options.arguments.repetition_penalty > MAX_REPETITION:
            raise UserError(f"SGLang takes a repetition_penalty of at most {MAX_REPETITION:g}.")

    def shut_down(self) -> None:
        """Stop SGLang's processes."""
        self.engine.shutdown()


def engine_options(model_args: "ModelArguments", adapters: dict[str, str]) -> dict[str, Any]:
    """Return what Engine takes; `sglang_config` comes last, so it can change nearly everything."""
    given: dict[str, Any] = model_args.sglang_config or {}
    if owned := [name for name in OWNED if name in given]:
        raise UserError(f"sglang_config sets {owned[0]}, which this engine sets itself; remove it.")
    num_stages = int(given.get("pp_size", 1))
    asked = model_args.sglang_tp_size
    options: dict[str, Any] = {
        "model_path": str(resolve_model(model_args.model_name_or_path, model_args)),
        "trust_remote_code": model_args.trust_remote_code,
        "revision": model_args.model_revision if model_args.model_revision != "main" else None,
        "download_dir": model_args.cache_dir,
        "dtype": model_args.infer_dtype,
        "context_length": model_args.sglang_maxlen,
        "mem_fraction_static": model_args.sglang_mem_fraction,
        "tp_size": asked if asked > 0 else max(device_facts().count // num_stages, 1),
        "incremental_streaming_output": True,
        "sampling_defaults": "openai",  # a model's own temperature must not come between ours and the answer
    }
    if adapters:
        options |= {
            "enable_lora": True,
            "lora_paths": adapters,
            "max_loras_per_batch": len(adapters) + 1,
            "lora_backend": lora_backend(model_args.sglang_lora_backend),
        }
    return options | given


def lora_backend(name: str) -> str:
    """Return SGLang's name of a kernel library; it has dropped flashinfer for adapters."""
    if name == "flashinfer":
        raise UserError("sglang_lora_backend: flashinfer is no longer in SGLang; use triton.")
    return name


def sampling_params(order: Order) -> dict[str, Any]:
    """Write the options of an order in SGLang's words."""
    options, arguments = order.options, order.options.arguments
    drawn: dict[str, Any] = {"temperature": 0.0}
    if options.is_sampled:
        drawn = {"temperature": arguments.temperature, "top_p": arguments.top_p, "top_k": arguments.top_k or -1}
        drawn |= {"min_p": options.min_p, "sampling_seed": order.seed}
    return {
        **drawn,
        "presence_penalty": options.presence_penalty,
        "frequency_penalty": options.frequency_penalty,
        "repetition_penalty": arguments.repetition_penalty,
        "max_new_tokens": order.room,
        "stop_token_ids": list(order.stop_ids),
        "ignore_eos": not order.stop_ids,  # true would make SGLang overlook the stop tokens as well
        "logit_bias": {str(token): value for token, value in options.logit_bias} or None,
        "json_schema": options.json_schema,
        "skip_special_tokens": False,
    }


def read_output(output: Mapping[str, Any], num_top: int | None) -> Tokens:
    """Read one chunk, which holds what is new since the last."""
    meta: Mapping[str, Any] = output["meta_info"]
    finish: Mapping[str, Any] | None = meta["finish_reason"]
    reason: FinishReason | None = None
    if finish is not None:
        if finish["type"] not in REASONS:
            raise refusal(finish)
        reason = REASONS[finish["type"]]
    ids: list[int] = list(output["output_ids"])
    rankings: Sequence[Ranking | None] = [None] * len(ids)
    if num_top is not None:
        rows = meta["output_token_logprobs"]
        tops = meta["output_top_logprobs"] if num_top else [[]] * len(rows)
        rankings = [
            Ranking(float(row[0]), tuple((int(other[1]), float(other[0])) for other in top[:num_top]))
            for row, top in zip(rows, tops, strict=True)
        ]
    return Tokens(ids, rankings, reason, int(meta.get("cached_tokens") or 0))


def refusal(finish: Mapping[str, Any]) -> UserError:
    """Return the error for an answer that SGLang did not finish."""
    message = f"SGLang ended the answer: {finish.get('message') or finish['type']}"
    if finish.get("status_code") == TOO_MANY:
        return QueueFullError(message)
    return UserError(message) if finish.get("status_code") == 400 else EngineStoppedError(message)
