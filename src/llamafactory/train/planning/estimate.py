"""The memory of a run, from its arguments and what is known of its rows: the model stands on torch's meta device."""

from dataclasses import dataclass, replace
from typing import cast

from transformers import PreTrainedModel

from ...data.batch_plan import BatchSize, batch_size_of
from ...extras.device import DeviceFacts, device_facts
from ...extras.env import read_env
from ...model.dtype import SHORT, DtypeChoice, choose_dtype, training_flags
from ...model.memory import MemoryEstimate, StepShape, estimate_step
from ...model.model_utils.checkpointing import ALL_LAYERS, USABLE, decoder_layers, num_checkpointed
from ...model.model_utils.parameters import count_parameters
from ...model.quantization.sizes import mapped_bytes
from ...model.skeleton import Skeleton, load_skeleton
from ..choices import BatchTokens, step_shape
from ..collation import choose_layout
from ..hf_args import to_hf_arguments
from ..layout import Layout
from ..optimizers.making import chosen_row
from ..stage import RunArguments, Stage
from .beside import generation_bytes, helper_bytes
from .figures import MemoryFigures, ModelFigures
from .rows import Rows, largest


HOLES = 0.125
"""Free pieces that the C library cannot give back or use, as a share of what a step allocates, on a CPU: 5 to
25 % were measured with glibc 2.36 (they grow with the number of live tensors)."""
PROCESS = 64 * 2**20
"""What the tokenizer, the rows and Python's own objects take in main memory, on a CPU where that is what counts."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run needs."""

    arguments: RunArguments
    skeleton: Skeleton
    dtypes: DtypeChoice
    size: BatchSize
    memory: MemoryEstimate
    generation: int
    process: int
    heap: int
    mapped: int
    checkpointing: str
    checkpointing_reason: str

    @property
    def peak(self) -> int:
        """The most that exists at once."""
        stays = self.memory.weights + self.memory.optimizer + self.memory.helpers
        return max(self.memory.total, stays + self.generation) + self.beside

    @property
    def beside(self) -> int:
        """What is there all the time and no tensor of the run."""
        return self.process + self.heap + self.mapped

    @property
    def phase(self) -> str:
        """Where that is."""
        if self.peak > self.memory.total + self.beside:
            return "generation"
        return "update" if self.memory.is_updating else "backward"

    def fits(self, free: int) -> bool:
        """Whether it can be run in so much free memory."""
        return self.peak <= USABLE * free


def estimate_run(stage: Stage, arguments: RunArguments, rows: Rows, facts: DeviceFacts, free: int) -> Estimate:
    """Estimate; nothing is read but the config of the model."""
    dtypes = choose_dtype(training_flags(arguments.training, arguments.finetuning), facts)
    skeleton = load_skeleton(
        arguments.model, arguments.finetuning, dtypes, num_tokens=_num_rows(arguments, rows), head=stage.head
    )
    size = plan_size(stage, arguments, skeleton, facts)
    tokens, row_len = largest(rows, arguments, size)
    asked = arguments.model.disable_gradient_checkpointing
    kept = make_shape(arguments, skeleton, dtypes, BatchTokens(tokens, row_len))
    memory = estimate_step(skeleton.model, kept)
    process = PROCESS if facts.kind == "cpu" else 0
    checkpointing, reason = "off", "asked"
    if asked is None:
        reason = "fits" if memory.total + process <= USABLE * free else "needed"
    if asked is False or reason == "needed":
        again = replace(
            kept,
            checkpointed_layers=num_checkpointed(arguments.model),
            is_offloaded=arguments.model.use_unsloth_gc and facts.kind != "cpu",
        )
        memory, checkpointing = estimate_step(skeleton.model, again), _describe(again, skeleton)
    prompt_len = row_len - arguments.generating.max_new_tokens
    return Estimate(
        arguments=arguments,
        skeleton=skeleton,
        dtypes=dtypes,
        size=size,
        memory=memory,
        generation=generation_bytes(skeleton.model, arguments, max(prompt_len, 0), dtypes.frozen.itemsize),
        process=process,
        heap=int(HOLES * passing(memory)) if facts.kind == "cpu" else 0,
        mapped=mapped_file(arguments, skeleton, dtypes) if facts.kind == "cpu" else 0,
        checkpointing=checkpointing,
        checkpointing_reason=reason,
    )


def passing(memory: MemoryEstimate) -> int:
    """Return what a step allocates and frees again."""
    return memory.copies + memory.activations + memory.logits + memory.work


def mapped_file(arguments: RunArguments, skeleton: Skeleton, dtypes: DtypeChoice) -> int:
    """Return what of the weights' file stays mapped beside the form that they are packed into while loading."""
    packing = skeleton.packing
    if packing is None or arguments.model.quantization_bit is None:
        return 0
    return mapped_bytes(skeleton.model, packing, dtypes.frozen)


def make_shape(arguments: RunArguments, skeleton: Skeleton, dtypes: DtypeChoice, batch: BatchTokens) -> StepShape:
    """Say what the estimate has to know."""
    shape = step_shape(skeleton.model, arguments, dtypes, batch, is_fused=skeleton.is_fused)
    return replace(
        shape,
        packing=skeleton.packing,
        helpers=helper_bytes(skeleton.model, arguments, dtypes),
        num_shards=num_devices(device_facts()) if dtypes.is_sharded else 1,
    )


def plan_size(stage: Stage, arguments: RunArguments, skeleton: Skeleton, facts: DeviceFacts) -> BatchSize:
    """Return how large batches are, as the collator of the run will say it."""
    layout: Layout = choose_layout(
        skeleton.model,
        arguments,
        to_hf_arguments(arguments, facts),
        kind=stage.dataset,
        joins_rows=stage.joins_rows,
    )
    pads = layout.kind != "flat"
    return batch_size_of(arguments.data, arguments.training, pads=pads, multiple=1 if facts.kind == "cpu" else 8)


def memory_figures(estimate: Estimate, free: int) -> MemoryFigures:
    """Return what the plan says about memory."""
    memory = estimate.memory
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "activations": memory.activations,
        "logits": memory.logits,
        "copies": memory.copies,
        "work": memory.work,
        "update": memory.update,
        "helpers": memory.helpers,
        "generation": estimate.generation,
        "process": estimate.process,
        "heap": estimate.heap,
        "mapped": estimate.mapped,
    }
    return MemoryFigures(
        parts=parts,
        peak=estimate.peak,
        phase=estimate.phase,
        free=free,
        usable=int(USABLE * free),
        checkpointing=estimate.checkpointing,
        checkpointing_reason=estimate.checkpointing_reason,
    )


def model_figures(estimate: Estimate) -> ModelFigures:
    """Return what the plan says about the model."""
    arguments, dtypes = estimate.arguments, estimate.dtypes
    trained, total = count_parameters(cast(PreTrainedModel, estimate.skeleton.model))
    packing, row = estimate.skeleton.packing, chosen_row(arguments.finetuning)
    return ModelFigures(
        name=arguments.model.model_name_or_path,
        parameters=total,
        trained=trained,
        trained_share=round(trained / max(total, 1), 6),
        method=arguments.finetuning.finetuning_type,
        quantization=None if packing is None else f"{packing.method} {packing.bits}",
        compute_dtype=dtypes.autocast or SHORT[dtypes.trainable],
        trained_dtype=SHORT[dtypes.trainable],
        optimizer=arguments.training.optim if row is None else row.title,
    )


def _num_rows(arguments: RunArguments, rows: Rows) -> int | None:
    """Return how many tokens the embedding has to hold; models may well have more rows than their tokenizer."""
    changes = arguments.model
    grows = changes.resize_vocab or changes.add_tokens or changes.add_special_tokens
    return rows.num_tokens if grows or changes.new_special_tokens_config else None


def _describe(shape: StepShape, skeleton: Skeleton) -> str:
    if shape.checkpointed_layers == ALL_LAYERS:
        return "on"
    return f"{min(shape.checkpointed_layers, len(decoder_layers(skeleton.model)))} layers"


def num_devices(facts: DeviceFacts) -> int:
    """Return how many devices `train` would start on."""
    env = read_env()
    local = env.nproc_per_node or (facts.count if facts.kind != "cpu" else 1)
    return max(env.world_size, local * max(env.nnodes, 1))
