"""Keys of older files keep their meaning and are mentioned once."""

from typing import Any

import pytest
from config_corpus import REQUIRED

from llamafactory.hparams import ConfigError
from llamafactory.hparams.legacy import RULES, list_legacy, load_legacy
from llamafactory.hparams.parser import load_run_config
from llamafactory.hparams.schema import list_params


BASE = {**REQUIRED["train"], "do_train": True, "dataset": "a", "val_size": 0.1}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"warmup_ratio": 0.1}, {"warmup_steps": 0.1}),
        ({"warmup_ratio": "0.03"}, {"warmup_steps": 0.03}),
        ({"warmup_ratio": 0.1, "warmup_steps": 20}, {"warmup_steps": 20}),
        ({"warmup_ratio": 0.1, "warmup_steps": 0}, {"warmup_steps": 0.1}),
        ({"warmup_ratio": None}, {"warmup_steps": 0}),
        ({"evaluation_strategy": "epoch"}, {"eval_strategy": "epoch", "do_eval": True}),
        ({"evaluate_during_training": True}, {"eval_strategy": "steps"}),
        ({"group_by_length": True}, {"train_sampling_strategy": "group_by_length"}),
        ({"group_by_length": False}, {"train_sampling_strategy": "random"}),
        ({"save_safetensors": True}, {}),
        ({"no_cuda": True}, {"use_cpu": True}),
        ({"push_to_hub_model_id": "org/name"}, {"hub_model_id": "org/name"}),
        ({"include_inputs_for_metrics": True}, {"include_for_metrics": ("inputs",)}),
        ({"fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer"},
         {"fsdp_config": {"transformer_layer_cls_to_wrap": "LlamaDecoderLayer"}}),
        ({"fsdp_min_num_params": 100, "fsdp_config": {"version": 2}},
         {"fsdp_config": {"min_num_params": 100, "version": 2}}),
        ({"split_batches": True, "dispatch_batches": False},
         {"accelerator_config": {"split_batches": True, "dispatch_batches": False}}),
        ({"adafactor": True}, {"optim": "adafactor"}),
        ({"per_gpu_train_batch_size": 3}, {"per_device_train_batch_size": 3}),
        ({"train_last_turn_only": True}, {"mask_history": True}),
        ({"sft_packing": False}, {"packing": False}),
        ({"prompt_template": "qwen"}, {"template": "qwen"}),
        ({"checkpoint_dir": "a,b"}, {"adapter_name_or_path": ("a", "b")}),
        ({"lora_modules_to_save": "embed_tokens"}, {"additional_target": ("embed_tokens",)}),
        ({"name_module_trainable": "mlp", "num_layer_trainable": 3},
         {"freeze_trainable_modules": ("mlp",), "freeze_trainable_layers": 3}),
        ({"max_source_length": 512, "max_target_length": 256}, {"cutoff_len": 768}),
        ({"resume_lora_training": False}, {"create_new_adapter": True}),
        ({"flash_attn": "off"}, {"flash_attn": "disabled"}),
        ({"flash_attn": False}, {"flash_attn": "disabled"}),
        ({"overwrite_output_dir": True}, {"overwrite_output_dir": True}),
        ({"logging_dir": "logs"}, {"logging_dir": "logs"}),
        ({"tpu_metrics_debug": True}, {"debug": ("tpu_metrics_debug",)}),
        ({"dpo_beta": 0.2}, {"pref_beta": 0.2}),
        ({"use_auth_token": True}, {}),
        ({"half_precision_backend": "auto"}, {}),
    ],
)  # fmt: skip
def test_an_old_key_becomes_the_new_one(old: dict[str, Any], new: dict[str, Any]) -> None:
    config = load_run_config({**BASE, **old})
    assert {key: config.values[key] for key in new} == new
    own = ("overwrite_output_dir", "logging_dir")  # transformers dropped them, this package has them
    for key in old.keys() - list_params("train").keys() - set(own):
        assert sum(key in notice for notice in config.notices) >= 1, key


def test_old_resolutions_are_squared() -> None:
    config = load_run_config({**BASE, "image_resolution": 512})

    assert config.values["image_max_pixels"] == 512 * 512
    assert any("image_max_pixels has no effect in `train`" in notice for notice in config.notices)


@pytest.mark.parametrize(
    ("old", "words"),
    [
        ({"warmup_ratio": 1.5}, "warmup_ratio is 1.5 but must be"),
        ({"warmup_ratio": "some"}, "warmup_ratio is 'some' but must be"),
        ({"save_safetensors": False}, "save_safetensors: false cannot be done"),
        ({"group_by_length": "maybe"}, "group_by_length is 'maybe' but must be true or false"),
        ({"sharded_ddp": "simple"}, "sharded_ddp cannot be set: it is gone from transformers; use fsdp"),
        ({"max_source_length": 512}, "max_source_length is gone; set cutoff_len"),
        ({"model_max_length": 512}, "model_max_length cannot be set: it is worked out from cutoff_len"),
        ({"half_precision_backend": "apex"}, "half_precision_backend: apex cannot be done"),
        ({"image_resolution": "big"}, "image_resolution is 'big' but must be a whole number"),
        ({"evaluation_strategy": "sometimes"}, "eval_strategy is 'sometimes' but must be one of no, steps, epoch"),
        ({"evaluation_strategy": "epoch", "eval_strategy": "steps"}, "evaluation_strategy means eval_strategy"),
    ],
)
def test_an_old_key_that_cannot_be_translated_is_explained(old: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run_config({**BASE, **old})
    assert words in str(caught.value)


def test_the_command_line_wins_over_an_old_name_in_the_file(tmp_path: Any) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model_name_or_path: x\noutput_dir: y\ndataset: a\nval_size: 2\nevaluation_strategy: steps\n")
    assert load_run_config([str(file), "eval_strategy=epoch"]).values["eval_strategy"] == "epoch"
    file.write_text(file.read_text().replace("evaluation_strategy", "eval_strategy"))
    assert load_run_config([str(file), "evaluation_strategy=epoch"]).values["eval_strategy"] == "epoch"


def test_no_old_key_is_also_a_present_one_and_all_targets_exist() -> None:
    present = list_params("train")
    legacy = load_legacy()
    assert not list_legacy().keys() & present.keys()
    assert set(legacy.rename.values()) <= present.keys()
    assert set(legacy.values) <= present.keys()
    assert len(list_legacy()) == len(legacy.rename) + len(legacy.ignored) + len(legacy.refused) + len(RULES)


def test_every_old_key_is_answered() -> None:
    for old in list_legacy():
        try:
            config = load_run_config({**BASE, old: "1"})
        except ConfigError as error:
            text = str(error)
        else:
            text = " ".join(config.notices)
        assert old in text
