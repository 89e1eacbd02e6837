"""README.md of a result."""

from pathlib import Path
from typing import Any

import yaml

from llamafactory.hparams.parser import get_train_args
from llamafactory.train.modelcard import model_card
from llamafactory.train.stage import RunArguments


def card(tmp_path: Path, **keys: Any) -> tuple[dict[str, Any], str]:
    given = {
        "model_name_or_path": "someone/some-model",
        "output_dir": str(tmp_path / "saves" / "my-adapter"),
        "do_train": True,
        "dataset": "alpaca,identity",
        "stage": "sft",
        "template": "chatml",
        **keys,
    }
    text = model_card(RunArguments(*get_train_args(given)), {"eval_loss": 1.23456, "epoch": 3.0}, num_ranks=2)
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


def test_card_of_an_adapter_states_data_method_metrics_versions_and_loading(tmp_path: Path):
    header, body = card(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert header["library_name"] == "peft"
    assert header["base_model"] == "someone/some-model"
    assert header["tags"] == ["llama-factory", "lora", "sft"]
    for text in (
        "# my-adapter",
        "alpaca, identity",
        "| lora_rank | 8 |",
        "| learning_rate | 5e-05 |",
        "| rows per update | 16 |",
        "| eval_loss | 1.235 |",
        "| transformers | ",
        'from_pretrained("someone/some-model")',
        'PeftModel.from_pretrained(model, "my-adapter")',
    ):
        assert text in body


def test_card_of_a_full_model_loads_without_peft(tmp_path: Path):
    header, body = card(tmp_path, finetuning_type="full")
    assert header["library_name"] == "transformers"
    assert header["base_model_relation"] == "finetune"
    assert "peft import" not in body
    assert "lora_rank" not in body
    assert 'AutoModelForCausalLM.from_pretrained("my-adapter")' in body


def test_local_paths_are_neither_linked_nor_shown(tmp_path: Path):
    base = tmp_path / "private" / "folder" / "base-model"
    header, body = card(tmp_path, model_name_or_path=str(base))
    assert "base_model" not in header
    assert "base-model" in body
    assert str(tmp_path) not in body


def test_a_base_that_transformers_cannot_load_is_loaded_through_llamafactory(tmp_path: Path):
    _, body = card(tmp_path, model_name_or_path="pypi://some-wheel")
    assert "llamafactory-cli export model_name_or_path=pypi://some-wheel adapter_name_or_path=my-adapter" in body
    assert "from_pretrained" not in body


def test_what_differs_from_the_usual_is_told_too(tmp_path: Path):
    _, plain = card(tmp_path)
    _, body = card(tmp_path, neftune_noise_alpha=5, use_dft_loss=True, packing=True)
    for name in ("neftune_noise_alpha", "use_dft_loss", "packing"):
        assert f"| {name} | " in body
        assert f"| {name} | " not in plain
