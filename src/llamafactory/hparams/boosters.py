"""Options that change how a model computes while it learns: each with its switch, and what it goes with."""

from dataclasses import dataclass

from .capability import Capability, by_name


OWN = "llamafactory.model"


@dataclass(frozen=True, kw_only=True)
class BoosterRow(Capability):
    """An option of the model that a switch turns on."""

    switch: str
    """The key that turns it on."""
    why: str = ""
    """What the other stages or methods lack, where some are named."""
    joins_rows: bool = True
    """Batches without padding and packed rows go with it."""
    whole: str = ""
    """Why weights cannot be sharded (FSDP, DeepSpeed); none given: they can."""
    falls_back: bool = False
    """Where it cannot run, the run goes on without it and says so: it computes the same, only faster."""
    source: str = ""
    """The paper or project."""


BOOSTERS = by_name(
    (
        BoosterRow(
            name="fused",
            title="fused layers",
            switch="fused_modules",
            build=f"{OWN}.fused.passes:fuse_modules",
            falls_back=True,
            source="docs/performance.md",
        ),
        BoosterRow(
            name="compile",
            title="compiled layers",
            switch="compile_layers",
            build=f"{OWN}.model_utils.compilation:compile_layers",
            falls_back=True,
            source="torch.compile",
        ),
        BoosterRow(
            name="liger",
            title="Liger kernels",
            switch="enable_liger_kernel",
            build=f"{OWN}.model_utils.liger:use_liger",
            devices=("cuda",),
            package="liger_kernel",
            falls_back=True,
            source="github.com/linkedin/Liger-Kernel",
        ),
        BoosterRow(
            name="shifted",
            title="shifted sparse attention (LongLoRA)",
            switch="shift_attn",
            build=f"{OWN}.model_utils.attention:use_shifted_attention",
            stages=("pt", "sft", "rm"),
            why="the model that it is compared with reads with full attention",
            source="arXiv 2309.12307",
        ),
        BoosterRow(
            name="depths",
            title="mixture of depths",
            switch="mixture_of_depths",
            build=f"{OWN}.depths:with_depths",
            stages=("pt", "sft"),
            why="in training its choice of tokens looks ahead, so what it says of a text is no probability",
            methods=("full", "lora"),
            joins_rows=False,
            whole="its routers are added to a model that is whole",
            source="arXiv 2404.02258",
        ),
        BoosterRow(
            name="unsloth",
            title="Unsloth",
            switch="use_unsloth",
            build=f"{OWN}.by_unsloth:read_by_unsloth",
            stages=("pt", "sft", "dpo", "kto"),
            why="a score for a text and answers between two updates are not known to it",
            methods=("full", "lora"),
            devices=("cuda", "xpu"),
            package="unsloth",
            joins_rows=False,
            whole="it places the weights by itself",
            source="github.com/unslothai/unsloth",
        ),
    )
)
