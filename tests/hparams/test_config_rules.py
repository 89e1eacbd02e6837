"""Every rule fires where it should and is silent where it should be; derivations give what they promise."""

from typing import Any

import pytest

from llamafactory.extras.env import Env
from llamafactory.hparams.resolve import derive
from llamafactory.hparams.rules import RULES, check_rules
from llamafactory.hparams.schema import list_params
from llamafactory.hparams.view import View


DEFAULTS = {name: param.default for name, param in list_params("train").items() if not param.is_required}
OK = {**DEFAULTS, "model_name_or_path": "x", "output_dir": "out", "do_train": True, "dataset": ("a", "b")}
FOUR_RANKS = Env(local_rank=0, world_size=4)
ZERO3 = {"zero_optimization": {"stage": 3}}


def messages(values: dict[str, Any], env: Env | None = None, command: str = "train") -> list[str]:
    view = View(command, {**OK, **values}, (), env or Env())
    return [violation.message for violation in check_rules(view)]


def test_the_defaults_break_no_rule() -> None:
    assert messages({}) == []


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"dataset": None}, "needs a dataset"),
    ({"do_eval": True}, "do_eval: true needs eval_dataset or val_size"),
    ({"predict_with_generate": True}, "predict_with_generate: true needs eval_dataset or val_size"),
    ({"eval_strategy": "steps"}, "eval_strategy: steps needs eval_dataset or val_size"),
    ({"val_size": 0.1, "eval_dataset": ("c",)}, "val_size: 0.1 cannot go with eval_dataset: c"),
    ({"val_size": 0.1, "dataset": None, "do_train": False}, "needs a dataset to hold out from"),
    ({"val_size": 2.5}, "must be a share below 1 or a whole number"),
    ({"eval_on_each_dataset": True}, "needs eval_dataset"),
    ({"streaming": True, "packing": True}, "streaming: true with packing needs max_steps"),
    ({"streaming": True, "stage": "pt"}, "streaming: true with packing needs max_steps"),
    ({"streaming": True, "stage": "dpo", "precompute_ref_logps": True}, "cannot go with precompute_ref_logps: true"),
    ({"streaming": True, "stage": "ppo"}, "streaming: true cannot go with stage: ppo"),
    ({"streaming": True, "train_sampling_strategy": "group_by_length"}, "the lengths of all examples must be known"),
    ({"do_predict": True, "val_size": 1}, "needs predict_with_generate"),
    ({"predict_with_generate": True, "val_size": 1, "compute_accuracy": True}, "compute_accuracy: true"),
    ({"predict_with_generate": True, "val_size": 1, "deepspeed": ZERO3}, "cannot go with ZeRO stage 3"),
    ({"load_best_model_at_end": True}, "load_best_model_at_end: true needs evaluation during training"),
    ({"early_stopping_steps": 2}, "early_stopping_steps: 2 needs evaluation during training"),
    ({"save_strategy": "best"}, "save_strategy: best needs evaluation during training"),
    ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "needs evaluation during training"),
    ({"load_best_model_at_end": True, "eval_strategy": "epoch", "val_size": 1}, "the same save_strategy and eval"),
    (
        {"load_best_model_at_end": True, "eval_strategy": "steps", "val_size": 1, "eval_steps": 30, "save_steps": 50},
        "save_steps: 50 must be a multiple of eval_steps: 30",
    ),
    (
        {"load_best_model_at_end": True, "eval_strategy": "steps", "val_size": 1, "eval_steps": 0.5, "save_steps": 50},
        "must both be shares or both be counts",
    ),
    ({"logging_steps": 1.5}, "logging_steps: 1.5 must be a whole number"),
    ({"logging_steps": 0}, "logging_steps: 0 is no interval"),
    ({"save_steps": 0}, "save_steps: 0 is no interval"),
    ({"num_train_epochs": 0.0}, "trains nothing"),
    ({"fp16": True, "bf16": True}, "fp16: true cannot go with bf16: true"),
    ({"fp16_full_eval": True, "bf16_full_eval": True}, "fp16_full_eval: true cannot go with"),
    ({"pure_bf16": True, "fp16": True}, "pure_bf16: true cannot go with fp16: true"),
    ({"pure_bf16": True, "bf16": False}, "pure_bf16: true cannot go with bf16: false"),
    ({"pure_bf16": True, "deepspeed": ZERO3}, "pure_bf16: true cannot go with ZeRO stage 3"),
    ({"fp8_enable_fsdp_float8_all_gather": True}, "needs fp8: true"),
    ({"fp8": True, "quantization_bit": 4}, "fp8: true cannot go with quantization_bit: 4"),
    ({"fp8": True, "fp8_enable_fsdp_float8_all_gather": True}, "it is about sharded weights"),
    ({"fp8": True, "fp16": True}, "8-bit products go with bf16"),
    ({"fp8": True, "use_galore": True, "galore_quantize": True}, "fp8: true cannot go with galore_quantize: true"),
    ({"disable_gradient_checkpointing": True, "gradient_checkpointing": True}, "gradient_checkpointing: true"),
    ({"dataloader_prefetch_factor": 2}, "needs dataloader_num_workers"),
    ({"dataloader_persistent_workers": True}, "needs dataloader_num_workers"),
    ({"max_batch_tokens": 9, "streaming": True, "max_steps": 5}, "max_batch_tokens: 9 cannot go with streaming: true"),
    ({"max_batch_tokens": 9, "auto_find_batch_size": True}, "it looks for a number of examples"),
    ({"max_batch_tokens": 9, "dataloader_drop_last": True}, "nothing is left over"),
    ({"max_batch_tokens": 9, "train_sampling_strategy": "batch_rebalance"}, "batch_rebalance counts examples"),
    ({"max_batch_tokens": 9, "stage": "ppo", "reward_model": "r"}, "nobody knows how long answers will be"),
    ({"interleave_probs": (0.5, 0.5)}, "cannot go with mix_strategy: concat"),
    ({"interleave_probs": (1.0,), "mix_strategy": "interleave_under"}, "has 1 values but dataset has 2"),
    ({"interleave_probs": (0.0, 0.0), "mix_strategy": "interleave_under"}, "must not all be 0"),
    ({"report_to": ("none", "wandb")}, "names trackers beside none"),
    ({"report_to": ("trackio",), "project": ""}, "needs a project"),
    ({"adapter_name_or_path": ("x",), "finetuning_type": "full"}, "needs an adapter as finetuning_type"),
    ({"adapter_name_or_path": ("x", "y"), "quantization_bit": 4}, "quantization_bit: 4 takes one adapter, not 2"),
    ({"quantization_bit": 4, "finetuning_type": "full"}, "quantized weights train with lora"),
    ({"quantization_bit": 4, "pissa_init": True}, "quantization_bit: 4 cannot go with pissa_init: true"),
    ({"quantization_bit": 4, "resize_vocab": True}, "quantization_bit: 4 cannot go with resize_vocab: true"),
    (
        {"quantization_bit": 4, "create_new_adapter": True, "adapter_name_or_path": ("x",)},
        "cannot go with create_new_adapter: true",
    ),
    ({"quantization_bit": 4, "quantization_method": "gptq"}, "recognised from the checkpoint"),
    ({"quantization_bit": 3}, "bnb has 4, 8"),
    ({"quantization_bit": 4, "quantization_method": "fp8"}, "fp8 has 8"),
    ({"quantization_bit": 4, "quantization_method": "quanto"}, "use bnb or torchao or eetq or hqq or fp8"),
    ({"quantization_bit": 4, "train_from_scratch": True}, "cannot go with train_from_scratch: true"),
    ({"qat_bits": 4, "quantization_bit": 4}, "qat_bits: 4 cannot go with quantization_bit: 4"),
    ({"qat_bits": 4, "finetuning_type": "oft"}, "training for few bits knows full, freeze and lora"),
    ({"qat_bits": 8, "lora_dropout": 0.1}, "qat_bits: 8 cannot go with lora_dropout: 0.1"),
    ({"quantization_bit": 8, "quantization_method": "hqq", "use_dora": True}, "DoRA on quantized weights needs bnb"),
    ({"quantization_device_map": "auto"}, "do_train: true cannot go with quantization_device_map: auto"),
    ({"infer_backend": "vllm"}, "do_train: true cannot go with infer_backend: vllm"),
    ({"infer_backend": "vllm", "stage": "rm"}, "vllm serves stage sft only"),
    ({"infer_backend": "vllm", "rope_scaling": "yarn"}, "infer_backend: vllm cannot go with rope_scaling: yarn"),
    ({"infer_backend": "sglang", "stage": "rm"}, "sglang serves stage sft only"),
    ({"infer_backend": "sglang", "quantization_bit": 4}, "infer_backend: sglang cannot go with quantization_bit: 4"),
    ({"infer_backend": "vllm", "add_tokens": ("x",)}, "vllm reads the weights as they lie"),
    ({"infer_backend": "sglang", "adapter_name_or_path": ("a", "b")}, "takes one adapter, not 2"),
    (
        {"infer_backend": "vllm", "adapter_name_or_path": ("a",), "infer_adapters": ("b=c",)},
        "vllm puts one adapter on the model at a time",
    ),
    ({"infer_backend": "vllm", "num_beams": 2}, "beams need infer_backend: huggingface"),
    ({"use_unsloth": True, "use_kt": True}, "use_unsloth: true cannot go with use_kt: true"),
    ({"use_unsloth": True, "deepspeed": ZERO3}, "use_unsloth: true cannot go with ZeRO stage 3"),
    ({"use_unsloth": True, "stage": "ppo", "reward_model": "r"}, "take reward_model_type full or api"),
    ({"kt_cpu_activation": "retain"}, "needs use_kt: true"),
    ({"use_kt": True, "finetuning_type": "freeze"}, "KTransformers trains with lora or full"),
    ({"use_kt": True, "infer_backend": "vllm"}, "use_kt: true cannot go with infer_backend: vllm"),
    ({"use_kt": True, "use_unsloth_gc": True}, "use_kt: true cannot go with use_unsloth_gc: true"),
    (
        {"use_kt": True, "kt_cpu_activation": "recompute", "disable_gradient_checkpointing": True},
        "kt_cpu_activation: recompute cannot go with",
    ),
    ({"export_legacy_format": True}, "a .bin file can run code when it is read; remove it"),
    ({"export_quantization_bit": 4}, "needs export_quantization_dataset"),
    ({"export_quantization_bit": 2, "export_quantization_method": "bnb"}, "bnb has 4, 8"),
    ({"export_quantization_method": "torchao"}, "needs export_quantization_bit"),
    ({"export_quantization_method": "awq"}, "needs export_quantization_dataset"),
    ({"export_quantization_method": "fp8", "stage": "rm"}, "a reward model is exported in full"),
    ({"image_min_pixels": 10**9}, "image_min_pixels: 1000000000 cannot go with image_max_pixels"),
    ({"video_min_pixels": 10**9}, "video_min_pixels: 1000000000 cannot go with video_max_pixels"),
    ({"add_tokens": ("x",), "quantization_bit": 4}, "the vocabulary of quantized weights cannot grow"),
    ({"add_special_tokens": ("x",), "new_special_tokens_config": "t.yaml"}, "give one of them"),
    (
        {"stage": "dpo", "predict_with_generate": True, "val_size": 1},
        "predict_with_generate: true cannot go with stage",
    ),
    ({"stage": "dpo", "neat_packing": True}, "neat_packing: true cannot go with stage: dpo"),
    ({"stage": "kto", "train_on_prompt": True}, "train_on_prompt: true cannot go with stage: kto"),
    ({"stage": "rm", "mask_history": True}, "mask_history: true cannot go with stage: rm"),
    ({"stage": "pt", "use_dft_loss": True}, "use_dft_loss: true cannot go with stage: pt"),
    ({"train_on_prompt": True, "mask_history": True}, "train_on_prompt: true cannot go with mask_history: true"),
    ({"stage": "dpo", "packing": True}, "packing: true cannot go with stage: dpo"),
    ({"neat_packing": True, "packing": False}, "neat_packing: true cannot go with packing: false"),
    ({"use_dft_loss": True, "use_eaft_loss": True}, "choose one loss"),
    (
        {
            "stage": "ppo",
            "reward_model": "r",
            "load_best_model_at_end": True,
            "eval_strategy": "steps",
            "val_size": 1,
        },
        "stage: ppo cannot go with load_best_model_at_end: true",
    ),
    ({"stage": "ppo", "reward_model": "r", "do_train": False}, "needs do_train: true"),
    ({"stage": "ppo"}, "needs a reward_model or reward_funcs"),
    ({"stage": "grpo", "reward_funcs": "r", "num_generations": 7}, "num_generations: 7 must divide"),
    ({"stage": "ppo", "reward_funcs": "r", "reward_weights": [1, 2]}, "2 values for 1 sources"),
    ({"stage": "ppo", "reward_model": "r", "lora_dropout": 0.1}, "the policy that learns must be the one that wrote"),
    ({"stage": "ppo", "reward_model": "r", "shift_attn": True}, "shift_attn: true cannot go with stage: ppo"),
    ({"stage": "dpo", "shift_attn": True}, "its stages are pt and sft and rm"),
    ({"use_unsloth": True, "stage": "rm"}, "its stages are pt and sft and dpo and kto"),
    ({"use_unsloth": True, "finetuning_type": "freeze"}, "Unsloth trains with full or lora"),
    ({"use_unsloth": True, "rope_scaling": "yarn"}, "use_unsloth: true cannot go with rope_scaling: yarn"),
    ({"use_unsloth": True, "lora_init": "eva"}, "use_unsloth: true cannot go with lora_init: eva"),
    ({"use_unsloth": True, "packing": True}, "with Unsloth every row is one text"),
    ({"lr_scheduler_type": "cosine_with_min_lr"}, "needs the lowest rate"),
    ({"mixture_of_depths": "convert"}, "mixture_of_depths: convert cannot go with finetuning_type: lora"),
    ({"mixture_of_depths": "load", "stage": "dpo"}, "its stages are pt and sft"),
    ({"mixture_of_depths": "load", "finetuning_type": "oft"}, "mixture of depths trains with full or lora"),
    ({"mixture_of_depths": "load", "packing": True}, "with mixture of depths every row is one text"),
    ({"mixture_of_depths": "load", "quantization_bit": 4}, "routers need whole weights"),
    ({"mixture_of_depths": "load", "fsdp": ["full_shard"]}, "its routers are added to a model that is whole"),
    ({"mixture_of_depths": "load", "use_asft_loss": True}, "its choice of tokens looks ahead"),
    ({"use_asft_loss": True, "shift_attn": True}, "shift_attn: true cannot go with use_asft_loss: true"),
    ({"stage": "ppo", "reward_model": "r", "finetuning_type": "full"}, "take reward_model_type full or api"),
    ({"stage": "dpo", "pref_loss": "ipo", "dpo_label_smoothing": 0.1}, "smoothing belongs to the losses sigmoid"),
    ({"stage": "dpo", "pref_loss": "exo_pair"}, "exo_pair needs dpo_label_smoothing above 0"),
    ({"stage": "dpo", "pref_loss": "simpo", "precompute_ref_logps": True}, "have no reference model"),
    ({"stage": "dpo", "pref_loss": "orpo", "pref_bco_weight": 0.1}, "have no reference model"),
    ({"finetuning_type": "full", "use_rslora": True}, "use_rslora: true cannot go with finetuning_type: full"),
    ({"finetuning_type": "full", "use_dora": True}, "use_dora: true cannot go with finetuning_type: full"),
    ({"finetuning_type": "oft", "loraplus_lr_ratio": 4.0}, "loraplus_lr_ratio: 4.0 cannot go with"),
    ({"stage": "dpo", "pissa_init": True}, "needs the starting model as reference"),
    ({"pissa_init": True, "deepspeed": ZERO3}, "pissa_init: true cannot go with ZeRO stage 3"),
    ({"finetuning_type": "freeze", "freeze_trainable_layers": 0}, "freeze_trainable_layers: 0 trains nothing"),
    ({"use_llama_pro": True, "finetuning_type": "full"}, "LLaMA Pro trains the new blocks only"),
    ({"use_galore": True, "use_apollo": True, "finetuning_type": "full"}, "choose one optimizer"),
    ({"use_badam": True}, "use_badam: true cannot go with finetuning_type: lora"),
    ({"use_muon": True}, "use_muon: true cannot go with finetuning_type: lora"),
    ({"use_muon": True, "finetuning_type": "full", "use_adam_mini": True}, "choose one optimizer"),
    ({"use_apollo": True, "finetuning_type": "full", "optim": "sgd"}, "APOLLO takes adamw_torch"),
    ({"use_galore": True, "finetuning_type": "full", "fsdp": "full_shard"}, "use_galore: true cannot go with fsdp"),
    ({"optim": "galore_adamw"}, "use use_galore: true with optim: adamw_torch"),
    (
        {"use_apollo": True, "apollo_layerwise": True, "finetuning_type": "full", "fp16": True},
        "layer-wise updates cannot rescale gradients",
    ),
    ({"use_galore": True, "finetuning_type": "full", "deepspeed": "z.json"}, "cannot go with deepspeed"),
    (
        {
            "use_galore": True,
            "galore_layerwise": True,
            "finetuning_type": "full",
            "gradient_accumulation_steps": 2,
        },
        "layer-wise updates cannot accumulate",
    ),
    ({"use_mca": True, "use_megatron_bridge": True}, "choose one back end"),
    ({"use_megatron_bridge": True, "stage": "dpo"}, "it knows the stages pt and sft"),
    ({"use_hyper_parallel": True}, "it trains with full"),
    ({"use_megatron_bridge": True, "deepspeed": "z.json"}, "cannot go with deepspeed"),
    ({"use_megatron_bridge": True, "quantization_bit": 4}, "use_megatron_bridge: true cannot go with quantization"),
    ({"use_megatron_bridge": True, "sequence_parallel": True}, "it needs at least 2"),
    ({"use_megatron_bridge": True, "tensor_model_parallel_size": 2}, "need a multiple of 2 processes, not 1"),
]


@pytest.mark.parametrize(("values", "words"), BROKEN, ids=lambda item: item if isinstance(item, str) else "")
def test_a_broken_rule_says_so(values: dict[str, Any], words: str) -> None:
    assert any(words in message for message in messages(values)), messages(values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"use_galore": True, "galore_layerwise": True, "finetuning_type": "full"}, "runs on one device, not on 4"),
        (
            {"use_badam": True, "badam_mode": "ratio", "finetuning_type": "full"},
            "use_badam: true runs on one device",
        ),
        ({"use_badam": True, "finetuning_type": "full"}, "use_badam: true runs on one device"),
    ],
)
def test_rules_about_several_devices(values: dict[str, Any], words: str) -> None:
    assert any(words in message for message in messages(values, FOUR_RANKS))
    assert not any(words in message for message in messages(values))


def test_expert_parallelism_does_not_count_as_a_split_of_the_ranks() -> None:
    values = {"use_megatron_bridge": True, "tensor_model_parallel_size": 2, "expert_model_parallel_size": 8}
    assert messages(values, FOUR_RANKS) == []


def test_export_needs_a_folder() -> None:
    assert messages({"export_dir": None}, command="export") == [
        "export_dir is missing; name the folder that receives the model"
    ]


@pytest.mark.parametrize(
    "values",
    [
        {
            "val_size": 0.1,
            "eval_strategy": "steps",
            "load_best_model_at_end": True,
            "eval_steps": 0.25,
            "save_steps": 0.5,
        },
        {"val_size": 10.0, "streaming": True, "max_steps": 5},
        {"val_size": 0.1, "streaming": True, "max_samples": 5},
        {"streaming": True, "packing": True, "max_steps": 5},
        {"stage": "dpo", "pref_loss": "orpo", "pissa_init": True},
        {"finetuning_type": "full", "use_galore": True, "galore_layerwise": True},
        {"quantization_bit": 8, "quantization_method": "eetq"},
        {"deepspeed": "missing.json", "predict_with_generate": True, "val_size": 1},
    ],
)
def test_good_combinations_pass(values: dict[str, Any]) -> None:
    assert messages(values) == []


def test_a_rule_about_a_wrong_value_is_left_out() -> None:
    view = View("train", {**OK, "fp16": True, "bf16": True}, {"bf16"}, Env())
    assert check_rules(view) == []


def test_every_violation_names_a_key_and_what_to_do() -> None:
    for values, _ in BROKEN:
        for violation in check_rules(View("train", {**OK, **values}, (), Env())):
            assert any(key in violation.message for key in violation.keys), violation
            assert "\n" not in violation.message
    assert len(RULES) > 35


@pytest.mark.parametrize(
    ("values", "derived"),
    [
        ({}, {"lora_alpha": 16, "packing": False, "media_dir": "data", "generation_max_length": 2048}),
        ({"lora_rank": 4, "lora_alpha": 0}, {"lora_alpha": 8}),
        ({"stage": "pt"}, {"packing": True}),
        ({"neat_packing": True}, {"packing": True}),
        ({"temperature": 0.0}, {"do_sample": False}),
        ({"eval_num_beams": 3}, {"generation_num_beams": 3}),
        ({"eval_strategy": "epoch"}, {"do_eval": True}),
        ({"early_stopping_steps": 3}, {"metric_for_best_model": "loss"}),
        ({"disable_shuffling": True}, {"train_sampling_strategy": "sequential"}),
        ({"gradient_checkpointing": False}, {"disable_gradient_checkpointing": True}),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": False}}, {"use_reentrant_gc": False}),
        ({"use_swanlab": True, "report_to": ("swanlab", "wandb")}, {"report_to": ("wandb",)}),
        ({"use_swanlab": True, "report_to": ("swanlab",)}, {"report_to": ("none",)}),
        ({"enable_torch_profiler": True}, {"profiler_output_dir": "out/profiler"}),
        ({"init_special_tokens": "desc_init"}, {"init_special_tokens": "noise_init"}),
    ],
)
def test_what_follows_is_derived(values: dict[str, Any], derived: dict[str, Any]) -> None:
    result = derive(View("train", {**OK, **values}, (), Env()))
    assert {key: result[key] for key in derived} == derived


def test_what_is_given_is_not_derived_over() -> None:
    values = {"lora_alpha": 5, "packing": True, "media_dir": "m", "generation_max_length": 9}
    assert not values.keys() & derive(View("train", {**OK, **values}, (), Env())).keys()
