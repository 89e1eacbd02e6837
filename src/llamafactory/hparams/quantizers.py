"""The quantizers: those that quantize while a model is loaded, and the formats of checkpoints that already are."""

from dataclasses import dataclass

from .capability import Capability, by_name


OWN = "llamafactory.model.quantization"


@dataclass(frozen=True, kw_only=True)
class QuantizerRow(Capability):
    """A way of keeping weights in few bits."""

    bits: tuple[int, ...] = ()
    """Values of quantization_bit, for one that quantizes while loading; none: it is recognised from a checkpoint."""
    pack: str = ""
    """What packs the weights of a model that was loaded whole, as "module:attribute", where transformers does not."""
    also: str | None = None
    """A further module that must be installed."""
    becomes_whole: bool = False
    """Its weights can be turned back, so adapters can be merged into what comes out."""
    takes_dora: bool = False
    """An adapter can ask it for the norms of its weights."""
    instead: str = ""
    """What to use where it cannot be had: it is refused."""


QUANTIZERS = by_name(
    (
        QuantizerRow(
            name="bnb",
            title="bitsandbytes",
            build=f"{OWN}.configs:bnb_config",
            package="bitsandbytes",
            needs="bnb",
            bits=(4, 8),
            becomes_whole=True,
            takes_dora=True,
        ),
        QuantizerRow(
            name="torchao",
            title="torchao, weights only",
            build=f"{OWN}.configs:torchao_config",
            pack=f"{OWN}.torchao:pack_torchao",
            package="torchao",
            needs="ao",
            bits=(4, 8),
        ),
        QuantizerRow(
            name="eetq",
            title="EETQ",
            build=f"{OWN}.configs:eetq_config",
            package="eetq",
            devices=("cuda",),
            bits=(8,),
        ),
        QuantizerRow(
            name="hqq",
            title="HQQ",
            build="",
            pack=f"{OWN}.hqq:pack_hqq",
            package="hqq",
            needs="hqq",
            bits=(1, 2, 3, 4, 5, 6, 8),
        ),
        QuantizerRow(
            name="gptq",
            title="GPTQ checkpoints",
            build=f"{OWN}.configs:stored_config",
            package="gptqmodel",
            also="optimum",
        ),
        QuantizerRow(
            name="awq",
            title="AWQ checkpoints",
            build=f"{OWN}.configs:stored_config",
            package="gptqmodel",
            devices=("cuda",),
        ),
        QuantizerRow(
            name="aqlm",
            title="AQLM checkpoints",
            build=f"{OWN}.configs:stored_config",
            package="aqlm",
            devices=("cuda",),
        ),
        QuantizerRow(
            name="compressed-tensors",
            title="compressed-tensors checkpoints",
            build=f"{OWN}.configs:whole_config",
            package="compressed_tensors",
            needs="compressed",
            becomes_whole=True,
        ),
        QuantizerRow(
            name="fp8",
            title="FP8: a frozen base in 8-bit floats, and FP8 checkpoints",
            build=f"{OWN}.configs:whole_config",
            pack=f"{OWN}.float8:pack_float8",
            bits=(8,),
            becomes_whole=True,
        ),
        QuantizerRow(name="mxfp4", title="MXFP4 checkpoints", build=f"{OWN}.configs:whole_config", becomes_whole=True),
        QuantizerRow(
            name="quanto",
            title="Quanto",
            build="",
            package="optimum.quanto",
            instead="bnb: merging an adapter into Quanto's weights loses it without a word",
        ),
    )
)
