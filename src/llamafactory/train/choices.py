"""What the driver chooses by itself before the first step, and the one line that says so."""

from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from ..data.batch_plan import BatchSize
from ..data.lengths import sequence_lengths
from ..data.streaming import StreamRows
from ..extras.cores import settle_threads
from ..extras.device import device_facts
from ..extras.env import read_env
from ..extras.logging import get_logger
from ..model.dtype import DtypeChoice
from ..model.fused.replacement import replacements
from ..model.memory import OPTIMIZER_STATES, StepShape, free_memory
from ..model.model_utils.attention import takes_bounds
from ..model.model_utils.checkpointing import checkpoint_if_needed


if TYPE_CHECKING:
    from .stage import RunArguments

logger = get_logger(__name__)

COMPUTED = {"bf16": torch.bfloat16, "fp16": torch.float16}
OPTIMIZERS = {"adamw_torch_fused": "fused AdamW", "adamw_torch": "AdamW"}
LITTLE_STATE = ("sgd", "adafactor", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "lion_8bit", "lomo")
"""Optimizers that keep far less than AdamW's two numbers for every weight."""


def choose_threads() -> int:
    """Settle torch's threads before anything is computed; an accelerator's host side is left alone."""
    current = torch.get_num_threads()
    return settle_threads(torch.set_num_threads, current) if device_facts().kind == "cpu" else current


def settle_step(
    model: PreTrainedModel, arguments: "RunArguments", rows: Any, size: BatchSize, dtypes: DtypeChoice
) -> None:
    """Decide about checkpointing where the user did not, and say in one line how a step is computed."""
    given = arguments.model.disable_gradient_checkpointing
    if given is not None:
        kept = "activations kept, as asked" if given else "activations computed twice, as asked"
    else:
        tokens = most_tokens(rows, size, arguments)
        row_len = tokens // (1 if size.max_tokens else size.num_rows)
        kept = _choose_checkpointing(model, arguments, dtypes, tokens, row_len)
    optimizer = arguments.training.optim
    logger.info(
        "A step: %s, %s, %s, %s, %s threads.",
        f"{dtypes.autocast} products"
        if dtypes.autocast
        else f"{str(dtypes.trainable).removeprefix('torch.')} products",
        OPTIMIZERS.get(optimizer, optimizer),
        kept,
        "rows padded" if size.pads else "no padding",
        torch.get_num_threads(),
    )


def most_tokens(rows: Any, size: BatchSize, arguments: "RunArguments") -> int:
    """Return a bound of the tokens in one batch: by the rows themselves where they are known, else by cutoff_len."""
    if arguments.training.do_train and rows is not None and not isinstance(rows, StreamRows) and len(rows):
        lengths = sequence_lengths(rows)
        longest = int(lengths.padded.max())
        if size.max_tokens is not None:
            return max(size.max_tokens, int(lengths.total.max()))
        if size.pads:
            return size.num_rows * lengths.padded.shape[1] * longest
        total = lengths.total
        return int(sum(sorted(total.tolist(), reverse=True)[: size.num_rows]))
    longest = arguments.data.cutoff_len
    return max(size.max_tokens or 0, size.num_rows * longest)


def _choose_checkpointing(
    model: PreTrainedModel, arguments: "RunArguments", dtypes: DtypeChoice, tokens: int, row_len: int
) -> str:
    env, facts = read_env(), device_facts()
    is_sharded = arguments.training.fsdp not in (None, "", False) or arguments.training.deepspeed is not None
    shape = StepShape(
        tokens=tokens,
        compute_dtype=COMPUTED.get(dtypes.autocast or "", dtypes.trainable),
        optimizer_states=0 if arguments.training.optim in LITTLE_STATE else OPTIMIZER_STATES,
        is_accumulated=arguments.training.gradient_accumulation_steps > 1,
        is_fused=any(True for _ in replacements(model)),
        masked_len=0 if takes_bounds(model) else row_len,
        num_shards=env.world_size if is_sharded else 1,
    )
    on_this_machine = max(env.world_size // max(env.nnodes, 1), 1)
    free = free_memory(facts, num_sharing=on_this_machine)
    choice = checkpoint_if_needed(
        model, shape, use_reentrant=arguments.model.use_reentrant_gc, on_device=facts.kind != "cpu", free=free
    )
    return f"activations {'computed twice' if choice.is_on else 'kept'} ({choice.reason})"
