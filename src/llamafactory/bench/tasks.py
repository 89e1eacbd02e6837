"""What is measured: tasks, the sides of each, and the ratios between sides that are claimed.

A side is a function in a process of its own. The sides of a task do the same work (the same rows in the same order)
and run in turn, round after round, so that every figure is a ratio of one run on one machine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..extras.errors import UserError
from ..extras.registry import did_you_mean


BATCH = 4
LORA_RANK = 8
BITS = 4
CUTOFF_LEN = 512
DPO_CUTOFF_LEN = 1024
DPO_BETA = 0.1
LEARNING_RATE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Side:
    """One way of doing the work of a task."""

    name: str
    title: str
    """A few words for the table."""
    run: str
    """The function that does it, as module:name; it takes a Job and returns what it measured."""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What this side does otherwise than its siblings."""
    is_packed: bool = False
    """Takes packed rows."""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A claim: how many times faster one side is than another."""

    side: str
    over: str = ""
    """Empty: the goal is the figure itself, as published for the same parts."""
    goal: float | None = None
    what: str = "tokens_per_s"
    """The figure that is divided."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One benchmark."""

    name: str
    title: str
    sides: Sequence[Side]
    ratios: Sequence[Ratio]
    stage: str = ""
    """The stage that is trained; empty where nothing is."""
    method: str = ""
    """What is trained: lora or full; empty where nothing is."""
    cutoff_len: int = CUTOFF_LEN
    batch: int = BATCH
    accumulation: int = 2
    """Batches in one step."""
    learning_rate: float = LEARNING_RATE
    steps: int = 3
    """Measured steps; the warm-up steps come before them."""
    packed_steps: int = 2
    """The same for packed sides, whose steps hold several times the tokens."""
    has_fixed_steps: bool = False
    """`steps` are all steps, and no word of the command changes them."""
    equal_losses: Sequence[tuple[str, str]] = ()
    """Sides that must show the same losses."""
    needs_cuda: bool = False
    package: str = ""
    """What has to be installed for it, beside the rest."""
    extra: str = ""
    """The extra of this package that brings it."""
    max_rounds: int | None = None
    """Most rounds, for tasks whose figures hardly move from round to round."""


OURS = "llamafactory.bench.ours:train"
REFERENCE = "llamafactory.bench.reference:train"
FULL = {"finetuning_type": "full"}


def _sft(name: str, title: str, ours: Mapping[str, Any], goals: tuple[float, float], **values: Any) -> Task:
    return Task(
        name=name,
        title=title,
        stage="sft",
        sides=(
            Side(
                name="reference",
                title="transformers.Trainer, padded, gradient checkpointing",
                run=REFERENCE,
                settings={"gradient_checkpointing": True},
            ),
            Side(name="ours", title="llamafactory", run=OURS, settings=ours),
            Side(
                name="reference-packed",
                title="transformers.Trainer, packed, no checkpointing",
                run=REFERENCE,
                settings={"gradient_checkpointing": False},
                is_packed=True,
            ),
            Side(
                name="ours-packed",
                title="llamafactory, packing: true",
                run=OURS,
                settings={**ours, "packing": True},
                is_packed=True,
            ),
            Side(name="gemm", title="the model's matrix products alone, bf16", run="llamafactory.bench.gemm:measure"),
        ),
        ratios=(
            Ratio(side="ours", over="reference", goal=goals[0]),
            Ratio(side="ours-packed", over="reference-packed", goal=goals[1]),
            Ratio(side="ours", over="reference-packed"),
            *values.pop("ratios", ()),
        ),
        equal_losses=(("ours", "reference"), ("ours-packed", "reference-packed")),
        **values,
    )


def _curves(task: Task, title: str) -> Task:
    """The sides `reference` and `ours` of a task in float32, where losses must be the same at every step.

    In bfloat16 they drift apart from the second step on, whoever computes them: see report.FIRST_STEP.
    """
    return Task(
        name=f"{task.name}-fp32",
        title=title,
        stage=task.stage,
        method=task.method,
        cutoff_len=task.cutoff_len,
        sides=[replace(side, settings={**side.settings, "bf16": False}) for side in task.sides[:2]],
        ratios=(),
        equal_losses=task.equal_losses[:1],
        batch=2,
        accumulation=1,
        learning_rate=10 * LEARNING_RATE,
        steps=8,
        has_fixed_steps=True,
        max_rounds=1,
    )


def _gpu(name: str, title: str, goal: float, **settings: Any) -> Task:
    """A task of one side, with a published figure as its goal."""
    settings = {"accumulation": 4, "cutoff_len": 4096, "bf16": True, **settings}
    side = Side(name="ours", title="llamafactory", run="llamafactory.bench.gpu:train", settings=settings)
    return Task(name=name, title=title, sides=(side,), ratios=(Ratio(side="ours", goal=goal),), needs_cuda=True)


SFT_LORA = _sft(
    "sft-lora",
    f"SFT, LoRA r={LORA_RANK} on all linear layers",
    {"finetuning_type": "lora", "lora_rank": LORA_RANK},
    (3.0, 1.45),
    method="lora",
    ratios=(Ratio(side="ours", over="gemm", goal=0.55),),
)
SFT_FULL = _sft("sft-full", "SFT, all weights", FULL, (2.5, 1.25), method="full", steps=2)
SFT_QLORA = Task(
    name="sft-qlora",
    title=f"SFT, LoRA r={LORA_RANK} on 4 bits of bitsandbytes",
    stage="sft",
    method="lora",
    package="bitsandbytes",
    extra="bnb",
    steps=2,
    sides=(
        Side(
            name="reference",
            title="transformers.Trainer, PEFT, bitsandbytes, padded, gradient checkpointing",
            run=REFERENCE,
            settings={"gradient_checkpointing": True, "quantization_bit": BITS},
        ),
        Side(
            name="ours",
            title="llamafactory",
            run=OURS,
            settings={"finetuning_type": "lora", "lora_rank": LORA_RANK, "quantization_bit": BITS},
        ),
    ),
    ratios=(Ratio(side="ours", over="reference"),),
    equal_losses=(("ours", "reference"),),
)
DPO = Task(
    name="dpo",
    title=f"DPO, LoRA r={LORA_RANK}",
    stage="dpo",
    method="lora",
    cutoff_len=DPO_CUTOFF_LEN,
    accumulation=1,
    steps=2,
    sides=(
        Side(
            name="reference",
            title="plain loop from the published formula, padded, gradient checkpointing",
            run="llamafactory.bench.reference_dpo:train",
        ),
        Side(
            name="ours",
            title="llamafactory",
            run=OURS,
            settings={"finetuning_type": "lora", "lora_rank": LORA_RANK, "pref_beta": DPO_BETA},
        ),
    ),
    ratios=(Ratio(side="ours", over="reference", goal=4.0),),
    equal_losses=(("ours", "reference"),),
)
GRADIENTS = Task(
    name="gradients",
    title=f"Gradients of LoRA r={LORA_RANK} beside those of transformers and PEFT",
    stage="sft",
    method="lora",
    batch=2,
    accumulation=1,
    steps=8,
    has_fixed_steps=True,
    max_rounds=1,
    sides=(Side(name="both", title="the same weights and tokens", run="llamafactory.bench.gradients:measure"),),
    ratios=(),
)

TASKS: tuple[Task, ...] = (
    SFT_LORA,
    SFT_FULL,
    SFT_QLORA,
    DPO,
    _curves(SFT_LORA, "SFT with LoRA: the same losses"),
    _curves(DPO, "DPO with LoRA: the same losses"),
    GRADIENTS,
    Task(
        name="preprocess",
        max_rounds=1,
        title="From JSON rows to ids and labels on disk",
        sides=(
            Side(
                name="reference",
                title="datasets.map with apply_chat_template",
                run="llamafactory.bench.preprocess:plain",
            ),
            Side(name="ours", title="llamafactory", run="llamafactory.bench.preprocess:ours"),
            Side(
                name="encode",
                title="the tokenizer alone (encode_batch)",
                run="llamafactory.bench.preprocess:encode_alone",
            ),
        ),
        ratios=(
            Ratio(side="ours", over="reference", what="rows_per_s"),
            Ratio(side="ours", over="encode", goal=0.6, what="rows_per_s"),
        ),
    ),
    Task(
        name="decode",
        max_rounds=1,
        title="Greedy answers, one request and sixteen at once",
        sides=(
            Side(name="reference", title="transformers generate", run="llamafactory.bench.decode:plain"),
            Side(name="ours", title="llamafactory's chat engine", run="llamafactory.bench.decode:ours"),
        ),
        ratios=(
            Ratio(side="ours", over="reference"),
            Ratio(side="ours", over="reference", what="concurrent_tokens_per_s"),
        ),
    ),
    _gpu(
        "gpu-8b-lora",
        "Llama-3.1-8B shape, LoRA r=16, rows of 4096 tokens, bf16, one GPU",
        12_500,
        shape="llama-3.1-8b",
        batch=2,
        finetuning_type="lora",
        lora_rank=16,
    ),
    _gpu(
        "gpu-0.6b-full",
        "Qwen3-0.6B shape, all weights, rows of 4096 tokens, bf16, one GPU",
        60_000,
        shape="qwen3-0.6b",
        batch=8,
        finetuning_type="full",
    ),
)


def find_tasks(names: Sequence[str], tasks: Sequence[Task] = TASKS) -> list[Task]:
    """Return the tasks of these names, or all of them."""
    known = {task.name: task for task in tasks}
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UserError(f"There is no benchmark {name!r}; there are {', '.join(known)}.{hint}")
    return [known[name] for name in names] if names else list(tasks)
