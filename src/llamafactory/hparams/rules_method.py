"""Rules about the method: stage, tuning, losses, large back ends."""

from collections.abc import Iterator

from .methods import tuning_methods
from .view import View, Violation


REFERENCE_FREE_LOSSES = ("orpo", "simpo")
SMOOTHED_LOSSES = ("sigmoid", "sigmoid_norm", "robust", "exo_pair")
SFT_LOSSES = ("use_dft_loss", "use_asft_loss", "use_eaft_loss")


def _sft_only(view: View) -> Iterator[Violation]:
    if view.stage == "sft":
        return
    for name in ("predict_with_generate", "neat_packing", "train_on_prompt", "mask_history", *SFT_LOSSES):
        if getattr(view, name):
            yield view.clash(name, "stage", "it belongs to stage sft")


def _noise(view: View) -> Iterator[Violation]:
    if view.label_smoothing_factor and view.stage in ("rm", "dpo", "kto", "ppo", "grpo"):
        hint = "it belongs to the stages pt and sft; pairs are smoothed by dpo_label_smoothing"
        yield view.clash("label_smoothing_factor", "stage", hint)
    if view.neftune_noise_alpha and view.stage in ("ppo", "grpo"):
        yield view.clash("neftune_noise_alpha", "stage", "the policy that learns must be the one that wrote")


def _labels(view: View) -> Iterator[Violation]:
    if view.train_on_prompt and view.mask_history:
        yield view.clash("train_on_prompt", "mask_history")


def _packing(view: View) -> Iterator[Violation]:
    if view.neat_packing and view.packing is False:
        yield view.clash("neat_packing", "packing", "neat_packing is a kind of packing")
    if view.packing and view.stage not in ("pt", "sft"):
        yield view.clash("packing", "stage", "it belongs to the stages pt and sft")


def _one_loss(view: View) -> Iterator[Violation]:
    chosen = [name for name in SFT_LOSSES if getattr(view, name)]
    for other in chosen[1:]:
        yield view.clash(chosen[0], other, "choose one loss")


def _reward_stages(view: View) -> Iterator[Violation]:
    if view.stage == "ppo" and view.load_best_model_at_end:
        hint = "the value head of the best step would be missing; remove load_best_model_at_end"
        yield view.clash("stage", "load_best_model_at_end", hint)


def _ppo(view: View) -> Iterator[Violation]:
    if view.stage != "ppo":
        return
    if not view.do_train:
        yield Violation(("stage", "do_train"), "stage: ppo needs do_train: true; it has nothing else to do")


def _rollouts(view: View) -> Iterator[Violation]:
    """PPO and GRPO learn from answers that they write and have judged."""
    if view.stage not in ("ppo", "grpo"):
        return
    if not view.reward_model and not view.reward_funcs:
        message = f"stage: {view.stage} needs a reward_model or reward_funcs; name one"
        yield Violation(("stage", "reward_model", "reward_funcs"), message)
    for name in ("lora_dropout", "module_dropout"):
        if getattr(view, name) > 0 and tuning_methods()[view.finetuning_type].is_adapter:
            yield view.clash(name, "stage", "the policy that learns must be the one that wrote; set it to 0")
    if view.reward_weights is not None:
        count = len(view.reward_funcs or ()) + bool(view.reward_model)
        if len(view.reward_weights) != count:
            message = f"reward_weights has {len(view.reward_weights)} values for {count} sources of reward"
            yield Violation(("reward_weights", "reward_funcs"), f"{message}; give one value per source")
    if not view.reward_model:
        return
    if view.reward_model_type == "lora" and view.finetuning_type != "lora":
        yield view.clash("reward_model_type", "finetuning_type", "take reward_model_type full or api")


def _groups(view: View) -> Iterator[Violation]:
    if view.stage != "grpo" or not view.do_train:
        return
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps", "grpo_buffer_size", "num_generations")
    count = view.per_device_train_batch_size * view.gradient_accumulation_steps * view.grpo_buffer_size
    if count % view.num_generations:
        message = (
            f"{view.pair('num_generations')} must divide the answers that a device gathers, "
            f"per_device_train_batch_size x gradient_accumulation_steps x grpo_buffer_size = {count}; change one"
        )
        yield Violation(keys, message)


def _preferences(view: View) -> Iterator[Violation]:
    if view.stage != "dpo":
        return
    if view.dpo_label_smoothing > 0 and view.pref_loss not in SMOOTHED_LOSSES:
        yield view.clash(
            "dpo_label_smoothing", "pref_loss", f"smoothing belongs to the losses {', '.join(SMOOTHED_LOSSES)}"
        )
    if view.dpo_label_smoothing == 0 and view.pref_loss == "exo_pair":
        message = "pref_loss: exo_pair needs dpo_label_smoothing above 0, such as 0.001"
        yield Violation(("pref_loss", "dpo_label_smoothing"), message)
    if view.pref_beta == 0 and view.pref_loss in ("ipo", "sppo_hard"):
        yield Violation(("pref_beta", "pref_loss"), f"{view.pair('pref_loss')} needs a pref_beta above 0; raise it")
    if view.pref_loss not in REFERENCE_FREE_LOSSES:
        return
    for name in ("pref_bco_weight", "precompute_ref_logps", "ref_model", "ref_model_adapters"):
        if getattr(view, name):
            yield view.clash(name, "pref_loss", "orpo and simpo have no reference model")


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
    _noise,
    _labels,
    _packing,
    _one_loss,
    _reward_stages,
    _ppo,
    _rollouts,
    _groups,
    _preferences,
    _backends,
    _megatron_split,
)
