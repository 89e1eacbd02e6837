"""GGUF files: what llama.cpp and transformers read has the same prompts and the same answers as the export."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from families import family_model
from gguf import GGUFReader
from model_making import logits, save_adapter
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from llamafactory.extras.errors import UserError
from llamafactory.model.gguf import convert_gguf, write_gguf
from llamafactory.train.export import export_model
from llamafactory.train.export.gguf_file import check_gguf


TALK = [{"role": "user", "content": "Count  to 123, caf\u00e9!\n\tPlease."}]
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
NAIVE = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text")
"""The families that transformers reads from GGUF files by itself."""
SCALED: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        "factor": 8.0,
        "original_max_position_embeddings": 128,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
}


def make(family: str, folder: Path, tokenizer: Any, **changes: Any) -> Any:
    """Write a model whose weights are large enough that a wrong row would show."""
    if family.startswith("gemma"):
        num_layers = {"gemma": 2, "gemma2": 2, "gemma3_text": 7}[family]
        kinds = {"layer_types": None, "query_pre_attn_scalar": 8} if family != "gemma" else {}
        changes = {"num_hidden_layers": num_layers, **kinds, **changes}
    if family == "mistral":
        changes = {"sliding_window": None, **changes}
    head_dim = 128 if family == "qwen3" else 8  # what transformers takes for granted of Qwen 3
    model = family_model(family, None, vocab_size=len(tokenizer) + 8, head_dim=head_dim, **changes)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.2
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, 0]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


def read_back(path: Path, folder: Path) -> Any:
    folder.mkdir()
    convert_gguf(path, folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def assert_near(expected: torch.Tensor, found: torch.Tensor, tolerance: float) -> None:
    assert float((expected - found).abs().max() / expected.abs().max()) < tolerance


@pytest.mark.parametrize(
    ("family", "is_tied"), [*((family, True) for family in FAMILIES), ("llama", False), ("qwen3", False)]
)
def test_every_family_comes_back_as_it_was(family: str, is_tied: bool, tiny_tokenizer: Any, tmp_path: Path) -> None:
    model = make(family, tmp_path / "in", tiny_tokenizer, tie_word_embeddings=is_tied)

    write_gguf(tmp_path / "in", tmp_path / "m.gguf", "f32", name="m", adds_bos=False)

    copy = read_back(tmp_path / "m.gguf", tmp_path / "out")
    assert_near(logits(model), logits(copy), 1e-5)
    before, after = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("in", "out"))
    prompt = {"add_generation_prompt": True, "return_dict": False}
    assert after.apply_chat_template(TALK, **prompt) == before.apply_chat_template(TALK, **prompt)
    assert copy.generation_config.eos_token_id == [tiny_tokenizer.eos_token_id, 0]
    if family in NAIVE:
        theirs = AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file="m.gguf", quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        weights = theirs.state_dict()
        assert all(torch.allclose(weight, weights[name], atol=1e-6) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("kind", SCALED)
def test_stretched_positions_come_back(kind: str, tiny_tokenizer: Any, tmp_path: Path) -> None:
    rope = {"rope_type": kind, "rope_theta": 10000.0, **SCALED[kind]}
    model = make("llama", tmp_path / "in", tiny_tokenizer, rope_parameters=rope)

    write_gguf(tmp_path / "in", tmp_path / "m.gguf", "f32", name="m", adds_bos=False)

    copy = read_back(tmp_path / "m.gguf", tmp_path / "out")
    assert_near(logits(model, 200), logits(copy, 200), 1e-5)
    assert copy.config.rope_parameters["rope_type"] == kind


def test_what_llama_cpp_would_compute_differently_is_refused(tiny_tokenizer: Any, tmp_path: Path) -> None:
    cases: dict[str, tuple[str, dict[str, Any]]] = {
        "dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
        "hidden_act": ("llama", {"hidden_act": "gelu"}),
        "query_pre_attn_scalar": ("gemma2", {"query_pre_attn_scalar": 16}),
        "cannot write a cohere2": ("cohere2", {}),
        "no place for the weight lm_head": ("gemma2", {"tie_word_embeddings": False}),
    }
    for words, (family, changes) in cases.items():
        make(family, tmp_path / words, tiny_tokenizer, **changes)
        with pytest.raises(UserError, match=words):
            write_gguf(tmp_path / words, tmp_path / "m.gguf", "f32", name="m", adds_bos=False)


@pytest.mark.parametrize("gguf_type", ["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_an_export_with_a_gguf_file(tiny_llama_dir: Path, tmp_path: Path, gguf_type: str) -> None:
    adapter = save_adapter(tiny_llama_dir, tmp_path / "adapter")

    target = tmp_path / "my model"
    export_model(
        {
            "model_name_or_path": str(tiny_llama_dir),
            "adapter_name_or_path": str(adapter),
            "export_dir": str(target),
            "export_gguf": gguf_type,
            "template": "chatml",
        }
    )

    name = f"my-model-{gguf_type.upper()}.gguf"
    assert (target / "Modelfile").read_text(encoding="utf-8").startswith(f"FROM ./{name}\n\nTEMPLATE")
    assert "mean KL divergence" in (target / "README.md").read_text(encoding="utf-8")
    stored = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(target / name).tensors}
    is_small = gguf_type.startswith(("q4", "q5"))
    assert stored["token_embd.weight"] == ("Q8_0" if is_small else gguf_type.upper())  # tied: the output layer too
    assert stored["blk.0.ffn_down.weight"] == gguf_type.upper()
    assert stored["output_norm.weight"] == "F32"


@pytest.fixture
def fake_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A llama-quantize that copies its input, as its command line is: source, target, type."""
    program = tmp_path / "bin" / "llama-quantize"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\n[ "$3" = Q4_K_M ] || { echo "no $3" >&2; exit 3; }\ncp "$1" "$2"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program


def test_k_types_are_packed_by_llama_cpp(fake_program: Path, tiny_llama_dir: Path, tmp_path: Path) -> None:
    common = {"model_name_or_path": str(tiny_llama_dir), "template": "chatml"}

    export_model({**common, "export_dir": str(tmp_path / "out"), "export_gguf": "q4_k_m"})
    with pytest.raises(UserError, match=r"exit status 3.*no Q6_K"):
        export_model({**common, "export_dir": str(tmp_path / "bad"), "export_gguf": "q6_k"})

    assert [path.name for path in (tmp_path / "out").glob("*.gguf*")] == ["out-Q4_K_M.gguf"]
    assert not (tmp_path / "out" / "out-Q4_K_M.whole").exists()
    assert not (tmp_path / "bad").exists()


def test_without_llama_cpp_k_types_are_refused_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(UserError, match="llama-quantize, which is not on PATH"):
        check_gguf("q4_k_m")
    check_gguf("q8_0")
