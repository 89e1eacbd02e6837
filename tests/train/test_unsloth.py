"""Unsloth: the names of its real API, on a fake of the package (it needs a GPU), in a run from keys to an adapter."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from model_making import load, logits
from stage_runs import history, saved_weights, stage_keys

from llamafactory.extras import packages
from llamafactory.extras.device import DeviceFacts
from llamafactory.extras.errors import UserError
from llamafactory.extras.packages import is_available
from llamafactory.model import by_unsloth
from llamafactory.train.tuner import run_exp


CALLS: list[tuple[str, dict[str, Any]]] = []


READS = """model_name max_seq_length dtype load_in_4bit load_in_8bit load_in_16bit full_finetuning token device_map
device_map_planner_kwargs rope_scaling fix_tokenizer trust_remote_code use_gradient_checkpointing resize_model_vocab
revision use_exact_model_name offload_embedding float32_mixed_precision fast_inference gpu_memory_utilization
float8_kv_cache random_state max_lora_rank disable_log_stats qat_scheme load_in_fp8 unsloth_tiled_mlp text_only"""
ADAPTS = """model r target_modules lora_alpha lora_dropout bias layers_to_transform layers_pattern
finetune_last_n_layers use_gradient_checkpointing random_state max_seq_length use_rslora modules_to_save
init_lora_weights loftq_config
temporary_location qat_scheme target_parameters ensure_weight_tying offload_layers checkpoint_skip_layers"""


class FastLanguageModel:
    """The two functions of unsloth 2026.10.9 with the parameters they name there; what they return is plain.

    The real ones take further names without a word, so a misspelt one would be lost: here it is an error.
    """

    @staticmethod
    def from_pretrained(**given: Any) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        assert given.keys() <= set(READS.split())
        CALLS.append(("from_pretrained", given))
        name = given["model_name"]
        model = AutoModelForCausalLM.from_pretrained(name, dtype=given["dtype"] or torch.float32)
        return model, AutoTokenizer.from_pretrained(name)

    @staticmethod
    def get_peft_model(model: Any, **given: Any) -> Any:
        from peft import LoraConfig, get_peft_model

        assert given.keys() <= set(ADAPTS.split())
        CALLS.append(("get_peft_model", given))
        shared = ("r", "target_modules", "lora_alpha", "lora_dropout", "bias", "use_rslora", "modules_to_save")
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **{name: given[name] for name in shared}))


@pytest.fixture
def unsloth(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Unsloth on a machine with a GPU, as far as the code that calls it can see."""
    CALLS.clear()
    fake = ModuleType("unsloth")
    vars(fake)["FastLanguageModel"] = FastLanguageModel
    monkeypatch.setitem(sys.modules, "unsloth", fake)
    monkeypatch.setattr(packages, "is_available", lambda module: module == "unsloth" or is_available(module))
    facts = DeviceFacts(**{**vars(by_unsloth.device_facts()), "kind": "cuda"})
    monkeypatch.setattr(by_unsloth, "device_facts", lambda: facts)
    monkeypatch.setattr(by_unsloth, "current_device", lambda rank: torch.device("cuda", rank))
    return CALLS


def test_lora_is_asked_for_by_unsloth_s_own_names_and_what_it_leaves_is_plain(
    unsloth: list[tuple[str, dict[str, Any]]], tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path
) -> None:
    keys = {"use_unsloth": True, "use_rslora": True, "lora_target": "q_proj,down_proj", "lora_dropout": 0.0}

    run_exp(stage_keys("sft", "lora", tiny_llama_dir, demo_dataset_dir, tmp_path / "a", **keys))

    (first, read), (second, adapted) = unsloth
    assert (first, second) == ("from_pretrained", "get_peft_model")
    wanted = {
        "model_name": str(tiny_llama_dir),
        "max_seq_length": 128,  # cutoff_len
        "load_in_4bit": False,
        "full_finetuning": False,
        "use_gradient_checkpointing": "unsloth",
        "device_map": {"": torch.device("cuda", 0)},
        "use_exact_model_name": True,
        "revision": "main",
    }
    assert {name: read[name] for name in wanted} == wanted
    wanted = {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["down_proj", "q_proj"]}
    assert {name: adapted[name] for name in wanted} == wanted
    assert adapted["use_gradient_checkpointing"] == "unsloth"

    weights = saved_weights(tmp_path / "a")
    assert len(weights) == 2 * 2 * 2
    assert all(weight.abs().max() > 0 for weight in weights.values())
    assert all("unsloth" not in str(entry) for entry in history(tmp_path / "a"))
    unsloth.clear()
    answer = logits(load(tiny_llama_dir, adapter_name_or_path=str(tmp_path / "a"), use_unsloth=True))
    assert unsloth == []
    assert float((answer - logits(load(tiny_llama_dir))).abs().max()) > 1e-4


def test_all_weights_and_four_bits_are_asked_for_too(
    unsloth: list[tuple[str, dict[str, Any]]], tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path
) -> None:
    keys = {"use_unsloth": True, "disable_gradient_checkpointing": True, "max_steps": 1, "save_steps": 5}
    run_exp(stage_keys("sft", "full", tiny_llama_dir, demo_dataset_dir, tmp_path / "full", **keys))
    run_exp(stage_keys("dpo", "lora", tiny_llama_dir, demo_dataset_dir, tmp_path / "bits", quantization_bit=4, **keys))

    read = [call for name, call in unsloth if name == "from_pretrained"]
    assert [call["full_finetuning"] for call in read] == [True, False]
    assert [call["load_in_4bit"] for call in read] == [False, True]
    assert [call["use_gradient_checkpointing"] for call in read] == [False, False]


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"cutoff_len": 4096}, "more than the 512 tokens"), ({"adapter_name_or_path": "x"}, "starts a new adapter")],
)
def test_what_unsloth_would_do_otherwise_is_refused(
    changes: dict[str, Any],
    words: str,
    unsloth: list[tuple[str, dict[str, Any]]],
    tiny_llama_dir: Path,
    demo_dataset_dir: Path,
    tmp_path: Path,
) -> None:
    if "adapter_name_or_path" in changes:
        run_exp(stage_keys("sft", "lora", tiny_llama_dir, demo_dataset_dir, tmp_path / "old", max_steps=1))
        changes = {"adapter_name_or_path": str(tmp_path / "old")}
    with pytest.raises(UserError, match=words):
        run_exp(
            stage_keys("sft", "lora", tiny_llama_dir, demo_dataset_dir, tmp_path / "a", use_unsloth=True, **changes)
        )


def test_a_machine_without_it_is_told_in_one_sentence(
    tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = stage_keys("sft", "lora", tiny_llama_dir, demo_dataset_dir, tmp_path / "a", use_unsloth=True)
    with pytest.raises(UserError, match="needs a GPU, and this device is cpu"):
        run_exp(keys)
    if not is_available("unsloth"):
        facts = DeviceFacts(**{**vars(by_unsloth.device_facts()), "kind": "cuda"})
        monkeypatch.setattr(by_unsloth, "device_facts", lambda: facts)
        with pytest.raises(UserError, match="needs the package 'unsloth', which is not installed"):
            run_exp(keys)
