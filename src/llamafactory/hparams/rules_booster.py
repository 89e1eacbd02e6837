"""Rules about options that change how a model computes, read from their table."""

from collections.abc import Iterator

from .boosters import BOOSTERS, BoosterRow
from .view import View, Violation


def _fits_stage(view: View) -> Iterator[Violation]:
    for row in _chosen(view):
        if row.stages and view.do_train and view.stage not in row.stages:
            hint = f"{row.why}; its stages are {' and '.join(row.stages)}"
            yield view.clash(row.switch, "stage", hint)


def _fits_method(view: View) -> Iterator[Violation]:
    for row in _chosen(view):
        if row.methods and view.finetuning_type not in row.methods:
            yield view.clash(row.switch, "finetuning_type", f"{row.title} trains with {' or '.join(row.methods)}")


def _fits_rows(view: View) -> Iterator[Violation]:
    for row in _chosen(view):
        for name in ("packing", "neat_packing", "padding_free"):
            is_block = name == "packing" and view.stage == "pt"  # one text, whatever stood in it
            if not row.joins_rows and getattr(view, name) and not is_block:
                yield view.clash(row.switch, name, f"with {row.title} every row is one text")


def _fits_shards(view: View) -> Iterator[Violation]:
    for row in _chosen(view):
        for name in ("deepspeed", "fsdp"):
            if row.whole and getattr(view, name):
                message = f"{view.pair(row.switch)} cannot go with {name}: {row.whole}; remove one of them"
                yield Violation((row.switch, name), message)


def _compared(view: View) -> Iterator[Violation]:
    """A loss that compares with the starting model needs one that reads a text in the same way."""
    for row in (BOOSTERS["shifted"], BOOSTERS["depths"]):
        if getattr(view, row.switch) and view.use_asft_loss:
            yield view.clash(row.switch, "use_asft_loss", row.why)


def _depths(view: View) -> Iterator[Violation]:
    if view.mixture_of_depths is None:
        return
    if view.mixture_of_depths == "convert" and view.do_train and view.finetuning_type != "full":
        hint = "new routers must be learned with the whole model; load takes lora too"
        yield view.clash("mixture_of_depths", "finetuning_type", hint)
    if view.quantization_bit is not None:
        yield view.clash("mixture_of_depths", "quantization_bit", "routers need whole weights")
    for name in ("shift_attn", "compile_layers"):
        if getattr(view, name):
            yield view.clash("mixture_of_depths", name)


UNSLOTH_LACKS = (
    "use_dora",
    "pissa_init",
    "use_llama_pro",
    "rope_scaling",
    "resize_vocab",
    "add_tokens",
    "add_special_tokens",
    "new_special_tokens_config",
    "train_from_scratch",
    "compile_layers",
    "enable_liger_kernel",
    "shift_attn",
    "mixture_of_depths",
)
"""Keys that change what Unsloth reads, or that it would not know of."""


def _unsloth(view: View) -> Iterator[Violation]:
    if not view.use_unsloth or not view.do_train:
        return
    for name in UNSLOTH_LACKS:
        if getattr(view, name):
            yield view.clash("use_unsloth", name, "Unsloth reads and computes the model by itself; remove one of them")
    if view.lora_init != "default":
        yield view.clash("use_unsloth", "lora_init")
    if view.quantization_bit is not None and view.quantization_method != "bnb":
        yield view.clash("use_unsloth", "quantization_method", "Unsloth quantizes with bnb")


def _chosen(view: View) -> Iterator[BoosterRow]:
    for row in BOOSTERS.values():
        if getattr(view, row.switch):
            yield row


RULES = (_fits_stage, _fits_method, _fits_rows, _fits_shards, _compared, _depths, _unsloth)
