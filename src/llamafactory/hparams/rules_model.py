"""Rules about the model: adapters, quantization, engines, export, media."""

from collections.abc import Iterator

from ..extras.catalog import DownloadSource, find_hub_id, is_display_name, known_models
from .exporters import EXPORT_QUANTIZERS
from .methods import tuning_methods
from .quantizers import QUANTIZERS
from .rules_run import deepspeed_stage
from .view import View, Violation


def _display_names(view: View) -> Iterator[Violation]:
    source = DownloadSource.of(view.env)
    for key in ("model_name_or_path", "ref_model", "reward_model"):
        name = view.get(key)
        if is_display_name(name) and find_hub_id(name, source) is None:
            others = ", ".join(f"{hub.label}: {hub_id}" for hub, hub_id in known_models()[name].hubs.items())
            message = f"{key}: {name} is not known on the hub that is set ({source.label}); it is on {others}"
            yield Violation((key,), message)


def _adapters(view: View) -> Iterator[Violation]:
    if not view.adapter_name_or_path:
        return
    if not tuning_methods()[view.finetuning_type].is_adapter:
        message = f"adapter_name_or_path needs an adapter as finetuning_type, not {view.finetuning_type}; change one"
        yield Violation(("adapter_name_or_path", "finetuning_type"), message)
    if len(view.adapter_name_or_path) > 1:
        for name, is_set in _one_adapter_only(view):
            if is_set:
                message = (
                    f"{view.pair(name)} takes one adapter, not {len(view.adapter_name_or_path)}; merge them first"
                )
                yield Violation((name, "adapter_name_or_path"), message)


def _one_adapter_only(view: View) -> Iterator[tuple[str, bool]]:
    yield "quantization_bit", view.quantization_bit is not None
    yield "infer_backend", view.infer_backend != "huggingface"
    yield "use_kt", view.use_kt


def _quantization(view: View) -> Iterator[Violation]:
    if view.quantization_bit is None:
        return
    if not tuning_methods()[view.finetuning_type].quantized:
        names = ", ".join(name for name, row in tuning_methods().items() if row.quantized)
        yield view.clash("quantization_bit", "finetuning_type", f"quantized weights train with {names}")
    for name in ("pissa_init", "resize_vocab", "train_from_scratch"):
        if getattr(view, name):
            yield view.clash("quantization_bit", name)
    if view.create_new_adapter and view.adapter_name_or_path:
        yield view.clash("quantization_bit", "create_new_adapter", "quantized weights cannot be merged into")
    row = QUANTIZERS[view.quantization_method]
    if not row.bits:
        names = " or ".join(row.name for row in QUANTIZERS.values() if row.bits and not row.instead)
        yield view.clash(
            "quantization_bit", "quantization_method", f"use {names}; {row.name} is recognised from the checkpoint"
        )
    elif row.instead:
        yield view.clash("quantization_bit", "quantization_method", f"use {row.instead}")
    elif view.quantization_bit not in row.bits:
        hint = f"{row.name} has {', '.join(str(bit) for bit in row.bits)}"
        yield view.clash("quantization_bit", "quantization_method", hint)
    if view.use_dora and not row.takes_dora:
        yield view.clash("use_dora", "quantization_method", "DoRA on quantized weights needs bnb")


def _rounded_training(view: View) -> Iterator[Violation]:
    if view.qat_bits is None:
        return
    if view.finetuning_type not in ("lora", "full", "freeze"):
        yield view.clash("qat_bits", "finetuning_type", "training for few bits knows full, freeze and lora")
    for name in ("quantization_bit", "use_dora", "lora_dropout", "fp8", "galore_quantize", "use_unsloth"):
        if getattr(view, name):
            yield view.clash("qat_bits", name)


def _quantized_training_device(view: View) -> Iterator[Violation]:
    if view.do_train and view.quantization_device_map == "auto":
        yield view.clash("do_train", "quantization_device_map", "remove quantization_device_map for training")


def _engine_in_training(view: View) -> Iterator[Violation]:
    if view.infer_backend != "huggingface" and (view.do_train or view.do_eval or view.do_predict):
        name = next(name for name in ("do_train", "do_eval", "do_predict") if getattr(view, name))
        yield view.clash(name, "infer_backend", "training and evaluation use infer_backend: huggingface")


def _outer_engines(view: View) -> Iterator[Violation]:
    """vLLM and SGLang read the weights from their folder themselves, and write; that is all."""
    if view.infer_backend == "huggingface":
        return
    if view.stage != "sft":
        yield view.clash("infer_backend", "stage", f"{view.infer_backend} serves stage sft only")
    for name in ("quantization_bit", "rope_scaling"):
        if getattr(view, name) is not None:
            yield view.clash("infer_backend", name)
    for name in (
        "add_tokens",
        "add_special_tokens",
        "new_special_tokens_config",
        "resize_vocab",
        "train_from_scratch",
    ):
        if getattr(view, name):
            hint = f"{view.infer_backend} reads the weights as they lie; `export` the model and serve the result"
            yield view.clash("infer_backend", name, hint)
    if view.adapter_name_or_path and view.infer_adapters:
        hint = f"{view.infer_backend} puts one adapter on the model at a time; give one of the two"
        yield view.clash("infer_adapters", "adapter_name_or_path", hint)
    if view.num_beams > 1:
        yield view.clash("infer_backend", "num_beams", "beams need infer_backend: huggingface")


def _unsloth(view: View) -> Iterator[Violation]:
    if not (view.use_unsloth or view.use_kt):
        return
    name = "use_unsloth" if view.use_unsloth else "use_kt"
    if view.use_unsloth and view.use_kt:
        yield view.clash("use_unsloth", "use_kt")
    if deepspeed_stage(view) == 3:
        yield Violation((name, "deepspeed"), f"{name}: true cannot go with ZeRO stage 3; use stage 2 or below")
    if view.stage == "ppo" and view.reward_model_type == "lora":
        yield view.clash(name, "reward_model_type", "take reward_model_type full or api")


def _ktransformers(view: View) -> Iterator[Violation]:
    if not view.use_kt:
        if view.kt_cpu_activation is not None:
            message = f"{view.pair('kt_cpu_activation')} needs use_kt: true; add it"
            yield Violation(("kt_cpu_activation", "use_kt"), message)
        return
    if view.finetuning_type not in ("lora", "full"):
        yield view.clash("use_kt", "finetuning_type", "KTransformers trains with lora or full")
    if view.infer_backend != "huggingface":
        yield view.clash("use_kt", "infer_backend")
    if view.use_unsloth_gc:
        yield view.clash("use_kt", "use_unsloth_gc")
    if view.kt_cpu_activation == "recompute" and view.disable_gradient_checkpointing:
        yield view.clash("kt_cpu_activation", "disable_gradient_checkpointing")


def _recomputing(view: View) -> Iterator[Violation]:
    if not view.disable_gradient_checkpointing:
        return
    if view.checkpointed_layers is not None:
        yield view.clash("checkpointed_layers", "disable_gradient_checkpointing", "remove one of them")
    if view.use_unsloth_gc:
        yield view.clash("use_unsloth_gc", "disable_gradient_checkpointing", "it moves what checkpoints keep")


def _exporting(view: View) -> Iterator[Violation]:
    if view.command == "export" and not view.export_dir:
        yield Violation(("export_dir",), "export_dir is missing; name the folder that receives the model")
    if view.export_legacy_format:
        message = "export_legacy_format: true is refused: a .bin file can run code when it is read; remove it"
        yield Violation(("export_legacy_format",), f"{message}, the weights are written as safetensors")
    if view.export_gguf is not None and view.stage == "rm":
        yield view.clash("export_gguf", "stage", "llama.cpp does not read our reward models")


def _export_quantization(view: View) -> Iterator[Violation]:
    method, bits = view.export_quantization_method, view.export_quantization_bit
    if method is None and bits is None:
        return
    row = EXPORT_QUANTIZERS[method or "gptq"]
    if bits is None and len(row.bits) > 1:
        choice = ", ".join(map(str, row.bits))
        message = f"{view.pair('export_quantization_method')} needs export_quantization_bit; {row.name} has {choice}"
        yield Violation(("export_quantization_method", "export_quantization_bit"), message)
    if bits is not None and bits not in row.bits:
        hint = f"{row.name} has {', '.join(map(str, row.bits))}"
        yield view.clash("export_quantization_bit", "export_quantization_method", hint)
    if row.is_calibrated and not view.export_quantization_dataset:
        name = "export_quantization_bit" if bits is not None else "export_quantization_method"
        message = f"{view.pair(name)} needs export_quantization_dataset; name texts to measure on"
        yield Violation((name, "export_quantization_dataset"), message)
    if view.stage == "rm":
        name = "export_quantization_bit" if bits is not None else "export_quantization_method"
        yield view.clash(name, "stage", "a reward model is exported in full")


def _media(view: View) -> Iterator[Violation]:
    for kind in ("image", "video"):
        low, high = f"{kind}_min_pixels", f"{kind}_max_pixels"
        if getattr(view, low) > getattr(view, high):
            yield view.clash(low, high, "the minimum must not be above the maximum")


def _new_tokens(view: View) -> Iterator[Violation]:
    for name in ("add_tokens", "add_special_tokens", "new_special_tokens_config"):
        if getattr(view, name) and view.quantization_bit is not None:
            yield view.clash(name, "quantization_bit", "the vocabulary of quantized weights cannot grow")
    if view.new_special_tokens_config and view.add_special_tokens:
        yield view.clash("new_special_tokens_config", "add_special_tokens", "give one of them")


RULES = (
    _display_names,
    _adapters,
    _quantization,
    _rounded_training,
    _quantized_training_device,
    _engine_in_training,
    _outer_engines,
    _unsloth,
    _ktransformers,
    _recomputing,
    _exporting,
    _export_quantization,
    _media,
    _new_tokens,
)
