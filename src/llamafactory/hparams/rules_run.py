"""Rules about the run itself: what it needs to start, its steps, its evaluation, its processes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from .view import View, Violation


def deepspeed_stage(view: View) -> int | None:
    """Return the ZeRO stage of the DeepSpeed configuration; None without one or when it cannot be read."""
    config: Any = view.deepspeed
    if isinstance(config, str):
        try:
            config = json.loads(Path(config).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
    if not isinstance(config, dict):
        return None
    zero: Any = cast("dict[str, Any]", config).get("zero_optimization")
    stage: Any = cast("dict[str, Any]", zero).get("stage") if isinstance(zero, dict) else 0
    return stage if isinstance(stage, int) else None


def _training_needs_data(view: View) -> Iterator[Violation]:
    if view.do_train and not view.dataset:
        yield Violation(("do_train", "dataset"), "do_train: true needs a dataset; name one, as in dataset: my_data")


def _evaluation_needs_data(view: View) -> Iterator[Violation]:
    if view.eval_dataset or view.val_size > 0:
        return
    for name in ("do_eval", "do_predict", "predict_with_generate"):
        if getattr(view, name):
            yield Violation((name, "eval_dataset"), f"{name}: true needs eval_dataset or val_size; set one of them")
    if view.eval_strategy != "no":
        message = f"{view.pair('eval_strategy')} needs eval_dataset or val_size; set one of them"
        yield Violation(("eval_strategy", "eval_dataset"), message)


def _held_out_part(view: View) -> Iterator[Violation]:
    if view.val_size == 0:
        return
    if view.eval_dataset:
        yield view.clash("val_size", "eval_dataset", "give one of them")
    if not view.dataset:
        yield Violation(("val_size", "dataset"), f"{view.pair('val_size')} needs a dataset to hold out from; name one")
    if view.val_size > 1 and view.val_size != int(view.val_size):
        yield Violation(
            ("val_size",), f"{view.pair('val_size')} must be a share below 1 or a whole number of examples"
        )


def _each_dataset(view: View) -> Iterator[Violation]:
    if view.eval_on_each_dataset and not view.eval_dataset:
        message = "eval_on_each_dataset: true needs eval_dataset; name the datasets to measure on"
        yield Violation(("eval_on_each_dataset", "eval_dataset"), message)


def _streaming(view: View) -> Iterator[Violation]:
    if not view.streaming:
        return
    if view.stage in ("ppo", "grpo"):
        yield view.clash("streaming", "stage", "its prompts are drawn from all examples")
    if view.train_sampling_strategy not in ("random", "sequential"):
        yield view.clash("streaming", "train_sampling_strategy", "the lengths of all examples must be known")
    if view.precompute_ref_logps:
        yield view.clash("streaming", "precompute_ref_logps", "the reference would go over all examples first")
    packs = view.packing or view.neat_packing or (view.packing is None and view.stage == "pt")
    if packs and view.stage in ("pt", "sft") and view.do_train and view.max_steps < 1:
        message = "streaming: true with packing needs max_steps: nobody knows how many rows the examples will fill"
        yield Violation(("streaming", "max_steps"), f"{message}; set it, or packing: false")


def _predicting(view: View) -> Iterator[Violation]:
    if view.stage == "sft" and view.do_predict and not view.predict_with_generate:
        message = "do_predict: true needs predict_with_generate: true in stage sft; add it"
        yield Violation(("do_predict", "predict_with_generate"), message)
    if view.predict_with_generate and view.compute_accuracy:
        yield view.clash("predict_with_generate", "compute_accuracy")
    if view.predict_with_generate and deepspeed_stage(view) == 3:
        yield Violation(
            ("predict_with_generate", "deepspeed"),
            "predict_with_generate: true cannot go with ZeRO stage 3; use a configuration of stage 2 or below",
        )


def _best_model(view: View) -> Iterator[Violation]:
    if view.eval_strategy == "no":
        needy = {
            "load_best_model_at_end": view.load_best_model_at_end,
            "early_stopping_steps": view.early_stopping_steps is not None,
            "save_strategy": view.save_strategy == "best",
            "lr_scheduler_type": view.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"),
        }
        for name in (name for name, is_set in needy.items() if is_set):
            message = f"{view.pair(name)} needs evaluation during training; set eval_strategy to steps or epoch"
            yield Violation((name, "eval_strategy"), message)
    elif view.load_best_model_at_end and view.save_strategy not in ("best", view.eval_strategy):
        message = (
            f"load_best_model_at_end: true needs the same save_strategy and eval_strategy, not "
            f"{view.save_strategy} and {view.eval_strategy}; make them equal"
        )
        yield Violation(("load_best_model_at_end", "save_strategy", "eval_strategy"), message)


def _lowest_rate(view: View) -> Iterator[Violation]:
    settings: Any = view.lr_scheduler_kwargs or {}
    if "with_min_lr" in view.lr_scheduler_type and not {"min_lr", "min_lr_rate"}.intersection(settings):
        message = (
            f"{view.pair('lr_scheduler_type')} needs the lowest rate; set lr_scheduler_kwargs: {{min_lr_rate: 0.1}}"
        )
        yield Violation(("lr_scheduler_type", "lr_scheduler_kwargs"), message)


def _best_model_steps(view: View) -> Iterator[Violation]:
    if not view.load_best_model_at_end or view.eval_strategy != "steps" or view.save_strategy != "steps":
        return
    eval_steps = view.eval_steps or view.logging_steps
    keys = ("load_best_model_at_end", "save_steps", "eval_steps")
    if (eval_steps < 1) != (view.save_steps < 1):
        message = f"{view.pair('save_steps')} and eval_steps: {eval_steps} must both be shares or both be counts"
        yield Violation(keys, f"{message} when load_best_model_at_end is true")
    elif eval_steps > 0 and round(view.save_steps * 1_000_000) % round(eval_steps * 1_000_000) != 0:
        message = f"{view.pair('save_steps')} must be a multiple of eval_steps: {eval_steps}"
        yield Violation(keys, f"{message} when load_best_model_at_end is true; change one of them")


def _intervals(view: View) -> Iterator[Violation]:
    for name in ("logging_steps", "eval_steps", "save_steps", "warmup_steps"):
        steps = getattr(view, name)
        if steps is not None and steps > 1 and steps != int(steps):
            yield Violation((name,), f"{view.pair(name)} must be a whole number, or a share of the run below 1")
    if view.logging_strategy == "steps" and view.logging_steps == 0:
        message = "logging_steps: 0 is no interval; give at least 1, or set logging_strategy to no"
        yield Violation(("logging_steps", "logging_strategy"), message)
    if view.save_strategy == "steps" and view.save_steps == 0:
        message = "save_steps: 0 is no interval; give at least 1, or set save_strategy to no"
        yield Violation(("save_steps", "save_strategy"), message)


def _length_of_run(view: View) -> Iterator[Violation]:
    if view.do_train and view.num_train_epochs == 0 and view.max_steps < 1:
        message = "num_train_epochs: 0 trains nothing; give more than 0, or set max_steps"
        yield Violation(("num_train_epochs", "max_steps"), message)


def _precision(view: View) -> Iterator[Violation]:
    for one, other in (("fp16", "bf16"), ("fp16_full_eval", "bf16_full_eval"), ("pure_bf16", "fp16")):
        if getattr(view, one) and getattr(view, other):
            yield view.clash(one, other)
    if view.pure_bf16 and view.bf16 is False:
        yield view.clash("pure_bf16", "bf16")
    if view.pure_bf16 and deepspeed_stage(view) == 3:
        yield Violation(
            ("pure_bf16", "deepspeed"),
            "pure_bf16: true cannot go with ZeRO stage 3; use bf16, or a configuration of stage 2 or below",
        )


def _fp8(view: View) -> Iterator[Violation]:
    if view.fp8_enable_fsdp_float8_all_gather and not view.fp8:
        message = "fp8_enable_fsdp_float8_all_gather: true needs fp8: true; add it"
        yield Violation(("fp8_enable_fsdp_float8_all_gather", "fp8"), message)
    if view.fp8 and view.quantization_bit is not None:
        yield view.clash("fp8", "quantization_bit", "a frozen base in 8-bit floats is quantization_method: fp8")
    if view.fp8_enable_fsdp_float8_all_gather and view.fp8 and not view.fsdp:
        yield view.clash("fp8_enable_fsdp_float8_all_gather", "fsdp", "it is about sharded weights; set fsdp")
    if view.fp8 and view.galore_quantize:
        yield view.clash("fp8", "galore_quantize")
    if view.fp8 and view.fp16:
        yield view.clash("fp8", "fp16", "8-bit products go with bf16")


def _compiled_once(view: View) -> Iterator[Violation]:
    if view.compile_layers and view.torch_compile:
        yield view.clash("compile_layers", "torch_compile", "the first compiles each layer, the second all at once")


def _checkpointing_is_one_switch(view: View) -> Iterator[Violation]:
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        ours, theirs = view.disable_gradient_checkpointing, getattr(view, name)
        if ours is not None and theirs is not None and ours == theirs:
            yield view.clash(name, "disable_gradient_checkpointing")


def _workers(view: View) -> Iterator[Violation]:
    if view.dataloader_num_workers == 0:
        for name in ("dataloader_prefetch_factor", "dataloader_persistent_workers"):
            if getattr(view, name):
                message = f"{view.pair(name)} needs dataloader_num_workers of at least 1; raise it"
                yield Violation((name, "dataloader_num_workers"), message)


def _token_batches(view: View) -> Iterator[Violation]:
    if view.max_batch_tokens is None:
        return
    if view.stage in ("ppo", "grpo"):
        message = f"max_batch_tokens cannot go with {view.pair('stage')}: nobody knows how long answers will be"
        yield Violation(("max_batch_tokens", "stage"), f"{message}; set per_device_train_batch_size")
    if view.streaming:
        yield view.clash("max_batch_tokens", "streaming", "the lengths of all examples must be known")
    if view.auto_find_batch_size:
        yield view.clash("max_batch_tokens", "auto_find_batch_size", "it looks for a number of examples")
    if view.dataloader_drop_last:
        yield view.clash("max_batch_tokens", "dataloader_drop_last", "batches are evened out and nothing is left over")
    if view.train_sampling_strategy == "batch_rebalance":
        yield view.clash("max_batch_tokens", "train_sampling_strategy", "batch_rebalance counts examples")


def _mixing(view: View) -> Iterator[Violation]:
    shares = view.interleave_probs
    if shares is None:
        return
    if view.mix_strategy == "concat":
        yield view.clash("interleave_probs", "mix_strategy", "set mix_strategy to one of the interleave_ kinds")
    for name in ("dataset", "eval_dataset"):
        if getattr(view, name) and len(getattr(view, name)) != len(shares):
            message = f"interleave_probs has {len(shares)} values but {name} has {len(getattr(view, name))}"
            yield Violation(("interleave_probs", name), f"{message}; give one value per dataset")
    if sum(shares) <= 0:
        message = f"{view.pair('interleave_probs')} must not all be 0"
        yield Violation(("interleave_probs",), message)


def _trackers(view: View) -> Iterator[Violation]:
    if "none" in view.report_to and len(view.report_to) > 1:
        yield Violation(("report_to",), f"{view.pair('report_to')} names trackers beside none; remove none")
    if "trackio" in view.report_to and not view.project:
        yield Violation(("report_to", "project"), "report_to: trackio needs a project; name one")


RULES = (
    _training_needs_data,
    _evaluation_needs_data,
    _held_out_part,
    _each_dataset,
    _streaming,
    _predicting,
    _best_model,
    _lowest_rate,
    _best_model_steps,
    _intervals,
    _length_of_run,
    _precision,
    _fp8,
    _compiled_once,
    _checkpointing_is_one_switch,
    _workers,
    _token_batches,
    _mixing,
    _trackers,
)
