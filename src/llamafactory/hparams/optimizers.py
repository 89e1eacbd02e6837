"""The optimizers: those of this package, which have a switch of their own, and the values of `optim`."""

from collections.abc import Sequence
from dataclasses import dataclass

from .capability import Capability, by_name


ADAMW = ("adamw_torch", "adamw_torch_fused")
ADAMW_8BIT = ("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit")
OWN = "llamafactory.train.optimizers"


@dataclass(frozen=True, kw_only=True)
class OptimizerRow(Capability):
    """An optimizer that a switch turns on."""

    switch: str
    """The key that turns it on."""
    beside: tuple[str, ...] = ADAMW
    """Values of `optim` that it can stand on; AdamW where it is an optimizer by itself."""
    layerwise: str | None = None
    """The key that updates each weight as soon as its gradient is there."""
    is_distributed: bool = True
    """Runs on several devices."""
    takes_shards: bool = False
    """Can update a weight of which each device holds a part (FSDP)."""
    source: str = ""
    """The paper."""
    measure: str = ""
    """Tells what it keeps; without one, that is what `optim` says."""


OPTIMIZERS = by_name(
    (
        OptimizerRow(
            name="galore",
            title="GaLore",
            switch="use_galore",
            build=f"{OWN}.galore_making:make_galore",
            measure=f"{OWN}.sizes:galore_sizes",
            methods=("full", "freeze"),
            beside=(*ADAMW, *ADAMW_8BIT, "adafactor"),
            layerwise="galore_layerwise",
            source="arXiv 2403.03507; with galore_quantize 2407.08296",
        ),
        OptimizerRow(
            name="apollo",
            title="APOLLO",
            switch="use_apollo",
            build=f"{OWN}.apollo:make_apollo",
            measure=f"{OWN}.sizes:apollo_sizes",
            methods=("full", "freeze"),
            layerwise="apollo_layerwise",
            source="arXiv 2412.05270",
        ),
        OptimizerRow(
            name="badam",
            title="BAdam",
            switch="use_badam",
            build=f"{OWN}.badam:make_badam",
            measure=f"{OWN}.sizes:badam_sizes",
            methods=("full", "freeze"),
            is_distributed=False,
            source="arXiv 2404.02827",
        ),
        OptimizerRow(
            name="adam_mini",
            title="Adam-mini",
            switch="use_adam_mini",
            build=f"{OWN}.adam_mini:make_adam_mini",
            measure=f"{OWN}.sizes:adam_mini_sizes",
            source="arXiv 2406.16793",
        ),
        OptimizerRow(
            name="muon",
            title="Muon",
            switch="use_muon",
            build=f"{OWN}.muon:make_muon",
            measure=f"{OWN}.sizes:muon_sizes",
            methods=("full", "freeze"),
            source="arXiv 2502.16982",
        ),
        OptimizerRow(
            name="loraplus",
            title="LoRA+",
            switch="loraplus_lr_ratio",
            build=f"{OWN}.loraplus:make_loraplus",
            methods=("lora",),
            beside=(),
            takes_shards=True,
            source="arXiv 2402.12354",
        ),
    )
)


@dataclass(frozen=True, kw_only=True)
class OptimFamily:
    """Values of `optim` that come from one place."""

    names: tuple[str, ...]
    title: str
    package: str | None = None
    """The module that must be installed; None for torch and transformers."""
    needs: str | None = None
    """The extra of this package that installs it."""
    instead: str = ""
    """What to use where the package is no longer published or cannot be: these values are refused."""
    devices: tuple[str, ...] = ()
    """Where it runs; none given: everywhere."""


OPTIM_FAMILIES: Sequence[OptimFamily] = (
    OptimFamily(names=ADAMW, title="AdamW of torch"),
    OptimFamily(names=("adafactor",), title="Adafactor of transformers"),
    OptimFamily(names=("sgd", "adagrad", "rmsprop"), title="torch's SGD, Adagrad and RMSprop"),
    OptimFamily(
        names=(
            "adamw_bnb_8bit",
            "adamw_8bit",
            "ademamix",
            "ademamix_8bit",
            "lion_8bit",
            "lion_32bit",
            "paged_adamw_32bit",
            "paged_adamw_8bit",
            "paged_ademamix_32bit",
            "paged_ademamix_8bit",
            "paged_lion_32bit",
            "paged_lion_8bit",
            "rmsprop_bnb",
            "rmsprop_bnb_8bit",
            "rmsprop_bnb_32bit",
        ),
        title="bitsandbytes: 8-bit and paged states",
        package="bitsandbytes",
        needs="bnb",
    ),
    OptimFamily(
        names=("schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd"),
        title="schedule-free: no learning rate schedule",
        package="schedulefree",
        needs="optim",
    ),
    OptimFamily(names=("stable_adamw",), title="StableAdamW of torch-optimi", package="optimi", needs="optim"),
    OptimFamily(
        names=("adamw_torch_4bit", "adamw_torch_8bit"),
        title="torchao: low-bit states, compiled at the first step",
        package="torchao",
        needs="ao",
        devices=("cuda", "xpu"),
    ),
    OptimFamily(names=("lomo", "adalomo"), title="LOMO", instead="optim: adafactor, or use_galore: true"),
    OptimFamily(names=("adamw_torch_npu_fused",), title="torch_npu's AdamW", package="torch_npu", devices=("npu",)),
    OptimFamily(names=("adamw_torch_xla",), title="torch_xla's AdamW", instead="optim: adamw_torch"),
    OptimFamily(names=("adamw_anyprecision",), title="torchdistx", instead="pure_bf16: true with optim: stable_adamw"),
    OptimFamily(names=("grokadamw",), title="the grokadamw package", instead="optim: adamw_torch"),
    OptimFamily(
        names=(
            "galore_adamw",
            "galore_adamw_8bit",
            "galore_adafactor",
            "galore_adamw_layerwise",
            "galore_adamw_8bit_layerwise",
            "galore_adafactor_layerwise",
        ),
        title="galore_torch",
        instead="use_galore: true with optim: adamw_torch, adamw_8bit or adafactor",
    ),
    OptimFamily(names=("apollo_adamw", "apollo_adamw_layerwise"), title="apollo_torch", instead="use_apollo: true"),
)


def family_of(optim: str) -> OptimFamily | None:
    """Return where a value of `optim` comes from; None for a name that a plug-in registers."""
    return next((family for family in OPTIM_FAMILIES if optim in family.names), None)
