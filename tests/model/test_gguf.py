"""GGUF files become plain model folders with the same weights and the same token ids."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

from llamafactory.extras.errors import UserError
from llamafactory.model.gguf import convert_gguf
from llamafactory.model.gguf.convert import build_config, state_tensors
from llamafactory.model.gguf.reader import read_gguf


TEXTS = (
    "Count to seven.",
    "a  12 b",
    "\tx = 3\n    y",
    "\u65e5\u672c\u8a9e \U0001f642",
    "<|im_start|>user\nhi<|im_end|>",
)


def converted(path: Path, folder: Path) -> Any:
    folder.mkdir()
    convert_gguf(path, folder)
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "starcoder2"])
def test_a_float_file_gives_the_very_same_model(
    write_gguf: Callable[..., Any], tmp_path: Path, architecture: str
) -> None:
    """The first three are converted here, the last one by transformers."""
    original = write_gguf(tmp_path / "m.gguf", architecture=architecture)

    model = converted(tmp_path / "m.gguf", tmp_path / "out")

    weights = model.state_dict()
    assert model.dtype == torch.float32
    assert all(torch.equal(weight, weights[name]) for name, weight in original.state_dict().items())
    ids = torch.arange(20)[None]
    assert torch.equal(original(ids).logits, model(ids).logits)


def test_quantized_blocks_are_unpacked_as_transformers_does(write_gguf: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, GGMLQuantizationType.Q8_0)
    reference = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    ).state_dict()

    file = read_gguf(path)
    ours = dict(state_tensors(file, build_config(file)))

    assert set(reference) - set(ours) == {"lm_head.weight"}  # tied
    assert all(torch.equal(weight, reference[name]) for name, weight in ours.items())
    model = converted(path, tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert all(torch.equal(reference[name].bfloat16(), weight) for name, weight in model.state_dict().items())


def test_the_tokenizer_gives_the_same_ids(write_gguf: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    converted(tmp_path / "m.gguf", tmp_path / "out")

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")

    assert all(tokenizer(text).input_ids == tiny_tokenizer(text).input_ids for text in TEXTS)
    assert all(tokenizer.decode(tokenizer(text).input_ids) == text for text in TEXTS)
    assert tokenizer.chat_template == tiny_tokenizer.chat_template
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == tiny_tokenizer.eos_token_id


def test_digits_are_split_first_where_the_model_learned_it_so(write_gguf: Callable[..., Any], tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", pre="smollm")
    converted(tmp_path / "m.gguf", tmp_path / "out")

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")

    pieces = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("ab  123")]
    assert pieces == ["ab", "\u0120\u0120", "1", "2", "3"]  # GPT-2's rule would glue a space to the digits


def test_a_tokenizer_we_do_not_know_is_left_to_transformers(
    write_gguf: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf", pre="never-heard-of")
    converted(tmp_path / "m.gguf", tmp_path / "out")

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")

    assert tokenizer(TEXTS[0]).input_ids == tiny_tokenizer(TEXTS[0]).input_ids


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_that_is_cut_short_is_one_sentence(
    write_gguf: Callable[..., Any], tmp_path: Path, share: float
) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])

    with pytest.raises(UserError, match="cut short"):
        read_gguf(path)


def test_another_file_is_not_taken_for_a_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"something else")

    with pytest.raises(UserError, match="not a GGUF file"):
        read_gguf(path)
