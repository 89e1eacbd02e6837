"""What the driver chooses by itself before the first step, and the one line that says so."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import PreTrainedModel

from ..data.batch_plan import BatchSize
from ..data.lengths import SequenceLengths, sequence_lengths
from ..data.streaming import StreamRows
from ..extras.cores import settle_threads
from ..extras.device import device_facts
from ..extras.env import read_env
from ..extras.logging import get_logger
from ..model.dtype import DtypeChoice
from ..model.fused.blocks import FusedMlp
from ..model.fused.replacement import replacements
from ..model.memory import OptimizerBytes, StepShape, free_memory
from ..model.model_utils.attention import takes_bounds
from ..model.model_utils.checkpointing import checkpoint_if_needed
from ..model.model_utils.compilation import choose_compilation, compile_layers
from ..model.model_utils.liger import use_liger
from .optimizers.recipe import Recipe, weights_of
from .optimizers.sizes import optimizer_sizes


if TYPE_CHECKING:
    from .stage import RunArguments

logger = get_logger(__name__)

COMPUTED = {"bf16": torch.bfloat16, "fp16": torch.float16}
ROLLOUTS = ("ppo", "grpo")
"""Stages that learn from answers of their own."""
KEEP_LOGITS = ("dpo", "kto", *ROLLOUTS)
"""Stages whose losses look at log-probabilities of whole answers."""
OPTIMIZERS = {"adamw_torch_fused": "fused AdamW", "adamw_torch": "AdamW"}


def choose_threads() -> int:
    """Settle torch's threads before anything is computed; an accelerator's host side is left alone."""
    current = torch.get_num_threads()
    return settle_threads(torch.set_num_threads, current) if device_facts().kind == "cpu" else current


def settle_liger(model: PreTrainedModel, arguments: "RunArguments") -> None:
    """Put Liger's kernels onto a model that is trained, where they were asked for and can run."""
    if arguments.model.enable_liger_kernel or arguments.training.use_liger_kernel:
        use_liger(model, arguments.training.liger_kernel_config, device_facts().kind)


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
    _settle_compilation(model, arguments, rows)


def most_tokens(rows: Any, size: BatchSize, arguments: "RunArguments") -> int:
    """Return a bound of the tokens in one batch: by the rows themselves where they are known, else by cutoff_len."""
    if arguments.training.do_train and rows is not None and not isinstance(rows, StreamRows) and len(rows):
        return largest_batch(sequence_lengths(rows), size, num_written(arguments))
    longest = arguments.data.cutoff_len + num_written(arguments)
    return max(size.max_tokens or 0, size.num_rows * longest)


def largest_batch(lengths: SequenceLengths, size: BatchSize, num_written: int = 0) -> int:
    """Return a bound of the tokens in one batch of rows, to each of which so many are written before it is learned."""
    if size.max_tokens is not None:
        return max(size.max_tokens, int(lengths.total.max()))
    if size.pads:
        return size.num_rows * lengths.padded.shape[1] * (int(lengths.padded.max()) + num_written)
    longest = sorted(lengths.total.tolist(), reverse=True)[: size.num_rows]
    return int(sum(longest)) + size.num_rows * num_written


def num_written(arguments: "RunArguments") -> int:
    """Return how many tokens the model itself writes to a row before it learns from it."""
    return arguments.generating.max_new_tokens if arguments.finetuning.stage in ROLLOUTS else 0


def _settle_compilation(model: PreTrainedModel, arguments: "RunArguments", rows: Any) -> None:
    """Compile the layers where that was asked for or repays; nothing is said where neither is so."""
    asked = arguments.model.compile_layers
    is_steady = arguments.finetuning.stage not in ROLLOUTS and not arguments.training.predict_with_generate
    num_tokens = tokens_of_run(rows, arguments) // max(read_env().world_size, 1)
    choice = choose_compilation(model, asked, device_facts().kind, num_tokens, is_steady=is_steady)
    if choice.is_on:
        number = compile_layers(model)
        logger.info("Compiling: %s decoder layers (%s); the first steps take longer.", number, choice.reason)
    elif asked:
        logger.warning("compile_layers: true is not followed, the layers run as they are: %s.", choice.reason)


def tokens_of_run(rows: Any, arguments: "RunArguments") -> int:
    """Return about how many tokens a run learns from; those of a stream have no known number."""
    training = arguments.training
    if rows is None or isinstance(rows, StreamRows) or not len(rows):
        return 0
    total = int(sequence_lengths(rows).total.sum())
    if training.max_steps > 0:
        rows_a_step = training.per_device_train_batch_size * training.gradient_accumulation_steps
        return int(total / len(rows) * rows_a_step * training.max_steps * max(read_env().world_size, 1))
    return int(total * training.num_train_epochs)


def _choose_checkpointing(
    model: PreTrainedModel, arguments: "RunArguments", dtypes: DtypeChoice, tokens: int, row_len: int
) -> str:
    env, facts = read_env(), device_facts()
    shape = step_shape(model, arguments, dtypes, BatchTokens(tokens, row_len))
    on_this_machine = max(env.world_size // max(env.nnodes, 1), 1)
    free = free_memory(facts, num_sharing=on_this_machine)
    choice = checkpoint_if_needed(model, shape, arguments.model, on_device=facts.kind != "cpu", free=free)
    return f"activations {'computed twice' if choice.is_on else 'kept'} ({choice.reason})"


class BatchTokens(NamedTuple):
    """The largest batch of a run."""

    total: int
    """Tokens of it, padding included."""
    row_len: int
    """Tokens of one of its rows."""


def step_shape(
    model: PreTrainedModel,
    arguments: "RunArguments",
    dtypes: DtypeChoice,
    batch: BatchTokens,
    *,
    is_fused: bool | None = None,
) -> StepShape:
    """Say what the memory estimate has to know of a run; `is_fused` where the modules cannot be asked."""
    training = arguments.training
    return StepShape(
        tokens=batch.total,
        compute_dtype=COMPUTED.get(dtypes.autocast or "", dtypes.trainable),
        optimizer=measure_optimizer(model, arguments),
        is_accumulated=training.gradient_accumulation_steps > 1,
        is_fused=has_fused_blocks(model) if is_fused is None else is_fused,
        masked_len=0 if takes_bounds(model) else batch.row_len,
        num_shards=read_env().world_size if dtypes.is_sharded else 1,
        is_rounded=arguments.finetuning.qat_bits is not None,
        keeps_logits=arguments.finetuning.stage in KEEP_LOGITS,
    )


def has_fused_blocks(model: PreTrainedModel) -> bool:
    """Whether the feed-forward blocks, which keep most, have their faster form."""
    return any(isinstance(replacement, FusedMlp) for replacement in replacements(model))


def measure_optimizer(model: PreTrainedModel, arguments: "RunArguments") -> OptimizerBytes:
    """Return what the optimizer of the run will keep."""
    training = arguments.training
    settings = OptimizerSettings(training.optim, training.learning_rate, training.seed)
    recipe = Recipe(
        model=model,
        weights=weights_of(model, 0.0, ()),
        hf=settings,  # pyright: ignore[reportArgumentType]
        finetuning=arguments.finetuning,
    )
    return optimizer_sizes(recipe, on_device=device_facts().kind != "cpu")


class OptimizerSettings(NamedTuple):
    """As much of the Trainer's arguments as the sizes of an optimizer depend on."""

    optim: str
    learning_rate: float
    seed: int
