"""Rules about the method: stage, tuning, losses, optimizers, large back ends."""

from collections.abc import Iterator

from .rules_run import deepspeed_stage
from .view import View, Violation


MEMORY_OPTIMIZERS = ("use_galore", "use_apollo", "use_badam")
SFT_LOSSES = ("use_dft_loss", "use_asft_loss", "use_eaft_loss")


def _sft_only(view: View) -> Iterator[Violation]:
    if view.stage == "sft":
        return
    for name in ("predict_with_generate", "neat_packing", "train_on_prompt", "mask_history", *SFT_LOSSES):
        if getattr(view, name):
            yield view.clash(name, "stage", "it belongs to stage sft")


def _labels(view: View) -> Iterator[Violation]:
    if view.train_on_prompt and view.mask_history:
        yield view.clash("train_on_prompt", "mask_history")


def _packing(view: View) -> Iterator[Violation]:
    if view.neat_packing and view.packing is False:
        yield view.clash("neat_packing", "packing", "neat_packing is a kind of packing")
    if view.packing and view.stage not in ("pt", "sft"):
        yield view.clash("packing", "stage", "it belongs to the stages pt and sft")
    if (view.packing or view.neat_packing) and view.streaming and view.stage == "sft":
        name = "neat_packing" if view.neat_packing else "packing"
        yield view.clash(name, "streaming", "packing needs to know the length of every example first")


def _one_loss(view: View) -> Iterator[Violation]:
    chosen = [name for name in SFT_LOSSES if getattr(view, name)]
    for other in chosen[1:]:
        yield view.clash(chosen[0], other, "choose one loss")


def _reward_stages(view: View) -> Iterator[Violation]:
    if view.stage in ("rm", "ppo") and view.load_best_model_at_end:
        yield view.clash("stage", "load_best_model_at_end", "remove load_best_model_at_end")


def _ppo(view: View) -> Iterator[Violation]:
    if view.stage != "ppo":
        return
    if not view.do_train:
        yield Violation(("stage", "do_train"), "stage: ppo needs do_train: true; it has nothing else to do")
    if not view.reward_model:
        yield Violation(("stage", "reward_model"), "stage: ppo needs a reward_model; name one")
    if view.shift_attn:
        yield view.clash("stage", "shift_attn")
    if view.reward_model_type == "lora" and view.finetuning_type != "lora":
        yield view.clash("reward_model_type", "finetuning_type", "take reward_model_type full or api")


def _preferences(view: View) -> Iterator[Violation]:
    if view.stage != "dpo":
        return
    if view.dpo_label_smoothing > 0 and view.pref_loss != "sigmoid":
        yield view.clash("dpo_label_smoothing", "pref_loss", "smoothing belongs to the sigmoid loss")
    if view.pref_bco_weight > 0 and view.pref_loss in ("orpo", "simpo"):
        yield view.clash("pref_bco_weight", "pref_loss", "orpo and simpo have no reference model")


def _lora_only(view: View) -> Iterator[Violation]:
    if view.finetuning_type == "lora":
        return
    for name in ("use_rslora", "use_dora", "pissa_init", "loraplus_lr_ratio"):
        if getattr(view, name):
            yield view.clash(name, "finetuning_type", "it belongs to finetuning_type lora")


def _pissa(view: View) -> Iterator[Violation]:
    if not view.pissa_init:
        return
    uses_reference = view.stage in ("ppo", "kto") or (view.stage == "dpo" and view.pref_loss not in ("orpo", "simpo"))
    if uses_reference:
        yield view.clash("pissa_init", "stage", "the stage needs the starting model as reference, which PiSSA changes")
    if deepspeed_stage(view) == 3:
        yield Violation(
            ("pissa_init", "deepspeed"), "pissa_init: true cannot go with ZeRO stage 3; use stage 2 or below"
        )


def _frozen_layers(view: View) -> Iterator[Violation]:
    if view.freeze_trainable_layers == 0 and view.finetuning_type == "freeze" and not view.freeze_extra_modules:
        message = "freeze_trainable_layers: 0 trains nothing; give a number, or name freeze_extra_modules"
        yield Violation(("freeze_trainable_layers",), message)
    if view.use_llama_pro and view.finetuning_type == "full":
        yield view.clash("use_llama_pro", "finetuning_type", "LLaMA Pro trains the new blocks only: freeze or lora")


def _memory_optimizers(view: View) -> Iterator[Violation]:
    chosen = [name for name in MEMORY_OPTIMIZERS if getattr(view, name)]
    for other in chosen[1:]:
        yield view.clash(chosen[0], other, "choose one optimizer")
    for name in chosen:
        if view.finetuning_type in ("lora", "oft"):
            yield view.clash(name, "finetuning_type", "it trains whole weights: full or freeze")
        if view.deepspeed and name != "use_badam":
            yield Violation((name, "deepspeed"), f"{name}: true cannot go with deepspeed; remove one of them")


def _layerwise(view: View) -> Iterator[Violation]:
    for switch, name in (("use_galore", "galore_layerwise"), ("use_apollo", "apollo_layerwise")):
        if not (getattr(view, switch) and getattr(view, name)):
            continue
        if view.gradient_accumulation_steps > 1:
            yield view.clash(name, "gradient_accumulation_steps", "layer-wise updates cannot accumulate")
        if view.env.is_distributed:
            yield Violation((name,), f"{name}: true runs on one device, not on {view.env.world_size}; turn it off")


def _badam(view: View) -> Iterator[Violation]:
    if view.use_badam and view.env.is_distributed:
        if view.badam_mode == "ratio":
            yield Violation(("badam_mode",), "badam_mode: ratio runs on one device; use layer")
        elif deepspeed_stage(view) != 3:
            yield Violation(("use_badam", "deepspeed"), "use_badam: true on several devices needs ZeRO stage 3")


def _backends(view: View) -> Iterator[Violation]:
    chosen = [name for name in ("use_megatron_bridge", "use_mca", "use_hyper_parallel") if getattr(view, name)]
    for other in chosen[1:]:
        yield view.clash(chosen[0], other, "choose one back end")
    for name in chosen:
        methods = ("full",) if name == "use_hyper_parallel" else ("full", "lora")
        if name != "use_mca" and view.stage not in ("pt", "sft"):
            yield view.clash(name, "stage", "it knows the stages pt and sft")
        if view.finetuning_type not in methods:
            yield view.clash(name, "finetuning_type", f"it trains with {' or '.join(methods)}")
    if view.use_megatron_bridge and view.deepspeed:
        yield Violation(("use_megatron_bridge", "deepspeed"), "use_megatron_bridge: true cannot go with deepspeed")
    if view.use_megatron_bridge and view.quantization_bit is not None:
        yield view.clash("use_megatron_bridge", "quantization_bit")


def _megatron_split(view: View) -> Iterator[Violation]:
    if not view.use_megatron_bridge:
        return
    if view.sequence_parallel and view.tensor_model_parallel_size == 1:
        yield view.clash("sequence_parallel", "tensor_model_parallel_size", "it needs at least 2")
    names = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
    size = view.tensor_model_parallel_size * view.pipeline_model_parallel_size * view.context_parallel_size
    if view.env.world_size % size != 0:
        message = f"{', '.join(view.pair(name) for name in names)} need a multiple of {size} processes, not"
        yield Violation(names, f"{message} {view.env.world_size}; change the sizes or the number of processes")


RULES = (
    _sft_only,
    _labels,
    _packing,
    _one_loss,
    _reward_stages,
    _ppo,
    _preferences,
    _lora_only,
    _pissa,
    _frozen_layers,
    _memory_optimizers,
    _layerwise,
    _badam,
    _backends,
    _megatron_split,
)
