"""Loading: what is wrong with a model folder is told before anything runs on random weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from model_making import load, model_args, tuning
from safetensors.torch import load_file, save_file

from llamafactory.extras.errors import UserError
from llamafactory.model import load_config, load_model, load_tokenizer
from llamafactory.model.model_utils.attention import attention_implementation


@pytest.fixture
def own_model(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_llama_dir.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_training_has_no_cache_and_inference_has(tiny_llama_dir: Path) -> None:
    assert load(tiny_llama_dir).config.use_cache
    assert not load(tiny_llama_dir, use_kv_cache=False).config.use_cache
    assert not load(tiny_llama_dir, tuning()).config.use_cache


def test_the_mode_follows_the_purpose(tiny_llama_dir: Path) -> None:
    assert load(tiny_llama_dir, tuning("full")).training
    model = load(tiny_llama_dir)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_trained_parameters_are_counted(tiny_llama_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="llamafactory"):
        model = load(tiny_llama_dir, tuning())

    config = model.config
    head, kv = config.hidden_size, config.num_key_value_heads * config.head_dim
    pairs = [(head, head), (head, kv), (head, kv), (head, head)] + 3 * [(head, config.intermediate_size)]
    expected = 8 * config.num_hidden_layers * sum(one + two for one, two in pairs)
    total = sum(parameter.numel() for parameter in model.parameters())
    line = f"trainable params: {expected:,} || all params: {total:,} || trainable%: {100 * expected / total:.4f}"
    assert line in caplog.text


def test_missing_weights_are_an_error_not_random(own_model: Path) -> None:
    weights = load_file(own_model / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, own_model / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(UserError, match=r"incomplete: 1 tensors are missing, such as model\.norm\.weight"):
        load(own_model)


def test_damaged_folders_are_one_sentence(own_model: Path) -> None:
    weights = own_model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged or incomplete"):
        load(own_model)
    edit_config(own_model, model_type="never-heard-of")
    with pytest.raises(UserError, match=r"is of a type that transformers .* does not know"):
        load_config(model_args(own_model))
    (own_model / "config.json").write_text("{")
    with pytest.raises(UserError, match="could not be read"):
        load_config(model_args(own_model))


def test_weights_of_another_shape_are_one_sentence(own_model: Path) -> None:
    edit_config(own_model, intermediate_size=32)

    with pytest.raises(UserError, match="other shapes than its config says"):
        load(own_model)


def test_a_folder_without_tokenizer_is_one_sentence(own_model: Path) -> None:
    for file in own_model.glob("tokenizer*"):
        file.unlink()

    with pytest.raises(UserError, match="tokenizer"):
        load_tokenizer(model_args(own_model))


def test_code_in_a_repository_does_not_run_unasked(own_model: Path, tmp_path: Path) -> None:
    sign = tmp_path / "ran"
    (own_model / "evil.py").write_text(f"from pathlib import Path\nPath({str(sign)!r}).touch()\nclass C: pass\n")
    edit_config(own_model, auto_map={"AutoConfig": "evil.C"}, model_type="evil")

    with pytest.raises(UserError, match="set trust_remote_code: true"):
        load_config(model_args(own_model))

    assert not sign.exists()


def test_pickled_weights_are_never_opened(own_model: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"x": Payload()}, own_model / "pytorch_model.bin")
    (own_model / "model.safetensors").unlink()

    with pytest.raises(UserError, match="pickle files only"):
        load(own_model)

    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_larger_than_the_embedding_is_refused(tiny_llama_dir: Path) -> None:
    arguments = model_args(tiny_llama_dir)
    tokenizer: Any = load_tokenizer(arguments)["tokenizer"]
    tokenizer.add_tokens(["<new>"])

    with pytest.raises(UserError, match="rows for them"):
        load_model(tokenizer, arguments, tuning())


def test_training_from_scratch_draws_new_weights(own_model: Path) -> None:
    known = load(own_model).state_dict()
    (own_model / "model.safetensors").unlink()

    model = load(own_model, tuning("full"), train_from_scratch=True)

    assert not torch.equal(model.state_dict()["model.embed_tokens.weight"], known["model.embed_tokens.weight"])


def test_the_tokenizer_is_saved_as_it_came(tiny_llama_dir: Path, tmp_path: Path) -> None:
    tokenizer: Any = load_tokenizer(model_args(tiny_llama_dir))["tokenizer"]

    tokenizer.save_pretrained(tmp_path)

    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert "local_files_only" not in saved
    assert "is_local" not in saved


def test_attention_kernels_have_transformers_names(tiny_llama_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load(tiny_llama_dir, flash_attn="disabled").config._attn_implementation == "eager"
    assert load(tiny_llama_dir, flash_attn="auto").config._attn_implementation == "sdpa"
    with caplog.at_level("WARNING", logger="llamafactory"):
        assert attention_implementation("fa3") is None
    assert "flash_attn_interface" in caplog.text
