"""Rules about what learns, read from the table of methods wherever it says enough."""

from collections.abc import Iterator

from .methods import tuning_methods
from .rules_method import REFERENCE_FREE_LOSSES
from .rules_run import deepspeed_stage
from .view import View, Violation


LORA_KEYS = ("use_rslora", "use_dora", "pissa_init")
MUTATING_STARTS = ("olora",)
"""Values of lora_init that take something out of the base."""


def _stages(view: View) -> Iterator[Violation]:
    method = tuning_methods()[view.finetuning_type]
    if method.stages and view.stage not in method.stages:
        yield view.clash("finetuning_type", "stage", f"{method.why}; its stages are {' and '.join(method.stages)}")


def _shards(view: View) -> Iterator[Violation]:
    if tuning_methods()[view.finetuning_type].sharded:
        return
    if deepspeed_stage(view) == 3:
        message = f"{view.pair('finetuning_type')} cannot go with ZeRO stage 3; use stage 2 or below"
        yield Violation(("finetuning_type", "deepspeed"), message)
    if view.fsdp:
        yield view.clash(
            "finetuning_type", "fsdp", "it needs whole weights on each device; use plain data parallelism"
        )


def _joined_rows(view: View) -> Iterator[Violation]:
    if tuning_methods()[view.finetuning_type].kind != "prompt":
        return
    for name in ("packing", "neat_packing", "padding_free"):
        if getattr(view, name) and name in view.given:
            hint = "virtual tokens stand before every row, and documents in one row would share them"
            yield view.clash("finetuning_type", name, hint)


def _lora_only(view: View) -> Iterator[Violation]:
    if view.finetuning_type == "lora":
        return
    for name in LORA_KEYS:
        if getattr(view, name):
            yield view.clash(name, "finetuning_type", "it belongs to finetuning_type lora")
    if view.lora_init != "default":
        yield view.clash("lora_init", "finetuning_type", "it belongs to finetuning_type lora")


def _one_start(view: View) -> Iterator[Violation]:
    if view.pissa_init and view.lora_init != "default":
        yield view.clash("pissa_init", "lora_init", "choose one start")
    if view.use_dora and (view.pissa_init or view.lora_init in MUTATING_STARTS):
        name = "pissa_init" if view.pissa_init else "lora_init"
        yield view.clash("use_dora", name, "its result could not be saved for the original weights")


def _mutated_base(view: View) -> Iterator[Violation]:
    """PiSSA and OLoRA change the base, which others may need as it was."""
    name = "pissa_init" if view.pissa_init else "lora_init"
    if not view.pissa_init and view.lora_init not in MUTATING_STARTS:
        return
    uses_reference = view.stage in ("ppo", "kto", "grpo") or (
        view.stage == "dpo" and view.pref_loss not in REFERENCE_FREE_LOSSES
    )
    if uses_reference:
        yield view.clash(name, "stage", "the stage needs the starting model as reference, which this start changes")
    if view.use_asft_loss:
        yield view.clash(name, "use_asft_loss", "the loss needs the starting model, which this start changes")
    if deepspeed_stage(view) == 3:
        message = f"{view.pair(name)} cannot go with ZeRO stage 3; use stage 2 or below"
        yield Violation((name, "deepspeed"), message)


def _adalora(view: View) -> Iterator[Violation]:
    if view.finetuning_type != "adalora":
        return
    if view.adalora_init_rank is not None and view.adalora_init_rank <= view.lora_rank:
        yield view.clash("adalora_init_rank", "lora_rank", "it must start above the rank that it ends with")
    for name in ("adalora_start", "adalora_end"):
        if getattr(view, name) > 1 and getattr(view, name) != int(getattr(view, name)):
            message = f"{view.pair(name)} must be a whole number, or a share of the run below 1"
            yield Violation((name,), message)
    if view.adalora_start < 1 and view.adalora_end < 1 and view.adalora_start + view.adalora_end >= 1:
        yield view.clash("adalora_start", "adalora_end", "no steps are left to move the ranks")


def _frozen_layers(view: View) -> Iterator[Violation]:
    if view.freeze_trainable_layers == 0 and view.finetuning_type == "freeze" and not view.freeze_extra_modules:
        message = "freeze_trainable_layers: 0 trains nothing; give a number, or name freeze_extra_modules"
        yield Violation(("freeze_trainable_layers",), message)
    if view.use_llama_pro and view.finetuning_type not in ("freeze", "lora", "adalora"):
        hint = "LLaMA Pro trains the new blocks only: freeze, lora or adalora"
        yield view.clash("use_llama_pro", "finetuning_type", hint)


RULES = (
    _stages,
    _shards,
    _joined_rows,
    _lora_only,
    _one_start,
    _mutated_base,
    _adalora,
    _frozen_layers,
)
