"""What follows from the values that were given. Pure: values in, further values out; nothing is written back."""

from collections.abc import Callable, Iterator
from typing import Any, cast

from ..extras.catalog import DownloadSource, find_hub_id, is_display_name
from .methods import tuning_methods
from .view import UnknowableError, View


Derivation = Callable[[View], Iterator[tuple[str, Any]]]

LESS_IS_BETTER = ("loss", "perplexity")
"""How the names of metrics end of which less is better."""


def derive(view: View) -> dict[str, Any]:
    """Return every value that follows from others and differs from what is there."""
    derived: dict[str, Any] = {}
    for derivation in DERIVATIONS:
        try:
            derived.update((key, value) for key, value in list(derivation(view)) if getattr(view, key) != value)
        except UnknowableError:
            continue
    return derived


def _model_names(view: View) -> Iterator[tuple[str, Any]]:
    """A display name of the catalog stands for its id on the hub in use."""
    for key in ("model_name_or_path", "ref_model", "reward_model"):
        name = view.get(key)
        hub_id = find_hub_id(name, DownloadSource.of(view.env)) if is_display_name(name) else None
        if hub_id is not None:
            yield key, hub_id


def _lora_alpha(view: View) -> Iterator[tuple[str, Any]]:
    if not view.lora_alpha:
        yield "lora_alpha", 2 * view.lora_rank


def _packing(view: View) -> Iterator[tuple[str, Any]]:
    if view.packing is None:
        yield "packing", view.neat_packing or view.stage == "pt"


def _media_dir(view: View) -> Iterator[tuple[str, Any]]:
    if view.media_dir is None and isinstance(view.dataset_dir, str):
        yield "media_dir", view.dataset_dir


def _greedy(view: View) -> Iterator[tuple[str, Any]]:
    if view.temperature == 0:
        yield "do_sample", False


def _rollout_sampling(view: View) -> Iterator[tuple[str, Any]]:
    """Who learns from tries must try what is unlikely too: all of the distribution is drawn from, by default."""
    if view.stage in ("ppo", "grpo"):
        yield from (
            (key, value)
            for key, value in (("temperature", 1.0), ("top_p", 1.0), ("top_k", 0))
            if key not in view.given
        )


def _generation(view: View) -> Iterator[tuple[str, Any]]:
    if view.generation_max_length is None:
        yield "generation_max_length", view.cutoff_len
    if view.generation_num_beams is None and view.eval_num_beams is not None:
        yield "generation_num_beams", view.eval_num_beams


def _evaluation(view: View) -> Iterator[tuple[str, Any]]:
    if view.eval_strategy != "no":
        yield "do_eval", True
    needs_metric = view.early_stopping_steps is not None or view.load_best_model_at_end or view.save_strategy == "best"
    if needs_metric and view.metric_for_best_model is None:
        yield "metric_for_best_model", _best_metric(view)
    if (view.metric_for_best_model or "").endswith(LESS_IS_BETTER) and view.greater_is_better is None:
        yield "greater_is_better", False


def _best_metric(view: View) -> str:
    """Where an evaluation generates, there is no loss."""
    if view.stage in ("ppo", "grpo"):
        return "reward"
    return "rouge-l" if view.stage == "sft" and view.predict_with_generate else "loss"


def _shuffling(view: View) -> Iterator[tuple[str, Any]]:
    if view.disable_shuffling:
        yield "train_sampling_strategy", "sequential"


def _checkpointing(view: View) -> Iterator[tuple[str, Any]]:
    """A value under either of transformers' names decides, as people expect; ours comes first where it is set."""
    given = [value for value in (view.activation_checkpointing, view.gradient_checkpointing) if value is not None]
    if given and view.disable_gradient_checkpointing is None:
        yield "disable_gradient_checkpointing", not given[0]
    elif view.disable_gradient_checkpointing is None and (view.use_unsloth_gc or view.checkpointed_layers):
        yield "disable_gradient_checkpointing", False
    for settings in (view.gradient_checkpointing_kwargs, view.activation_checkpointing_kwargs):
        if isinstance(settings, dict) and "use_reentrant" in settings:
            yield "use_reentrant_gc", bool(cast("dict[str, Any]", settings)["use_reentrant"])


def _unused_parameters(view: View) -> Iterator[tuple[str, Any]]:
    """Every adapter weight has a gradient in every step, so the search for unused ones only costs time."""
    if view.ddp_find_unused_parameters is None and tuning_methods()[view.finetuning_type].is_adapter:
        yield "ddp_find_unused_parameters", False


def _trackers(view: View) -> Iterator[tuple[str, Any]]:
    """Our own SwanLab callback replaces the one in transformers."""
    if view.use_swanlab and "swanlab" in view.report_to:
        yield "report_to", tuple(name for name in view.report_to if name != "swanlab") or ("none",)


def _profiler(view: View) -> Iterator[tuple[str, Any]]:
    if view.enable_torch_profiler and view.profiler_output_dir is None:
        yield "profiler_output_dir", f"{view.output_dir}/profiler"


def _new_tokens(view: View) -> Iterator[tuple[str, Any]]:
    if view.new_special_tokens_config is None:
        yield "init_special_tokens", "noise_init"


def _rope_length(view: View) -> Iterator[tuple[str, Any]]:
    """Unsloth asks for the longest text too."""
    is_asked = view.rope_scaling is not None or view.use_unsloth
    if view.command == "train" and is_asked and view.rope_length is None:
        yield "rope_length", view.cutoff_len


def _unsloth(view: View) -> Iterator[tuple[str, Any]]:
    """Its own checkpointing is always on unless the user turns it off, and nobody else compiles its layers."""
    if view.use_unsloth:
        if view.disable_gradient_checkpointing is None:
            yield "disable_gradient_checkpointing", False
        if view.compile_layers is None:
            yield "compile_layers", False


def _balance(view: View) -> Iterator[tuple[str, Any]]:
    """The routers' logits carry no gradient through the reentrant form of checkpointing."""
    if view.moe_aux_loss_coef:
        yield "use_reentrant_gc", False


DERIVATIONS: tuple[Derivation, ...] = (
    _model_names,
    _lora_alpha,
    _packing,
    _media_dir,
    _greedy,
    _rollout_sampling,
    _generation,
    _evaluation,
    _shuffling,
    _checkpointing,
    _unused_parameters,
    _trackers,
    _profiler,
    _new_tokens,
    _rope_length,
    _unsloth,
    _balance,
)
