"""Makers of the files that these tests read: GGUF files, wheels and adapters, all from the tiny model."""

import json
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.constants import MODEL_ARCH_NAMES
from gguf.quants import quantize
from transformers import AutoConfig, AutoModelForCausalLM


CONTROL, NORMAL = 3, 1


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a cache of its own, and the caller's hub settings do not reach it."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("LLAMAFACTORY_CACHE", str(cache))
    for name in ("USE_MODELSCOPE_HUB", "USE_OPENMIND_HUB"):
        monkeypatch.delenv(name, raising=False)
    return cache


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to open a connection or to look up a name fails the test."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"network used: {args}")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def write_gguf(tiny_llama: Callable[[], Any], tiny_tokenizer: Any) -> Callable[..., Any]:
    """Write a tiny model as llama.cpp's converter does and return the model it was written from."""

    def write(
        path: Path,
        kind: GGMLQuantizationType = GGMLQuantizationType.F32,
        pre: str = "gpt-2",
        architecture: str = "llama",
    ) -> Any:
        model = tiny_llama() if architecture == "llama" else make_model(architecture, tiny_llama().config)
        writer = GGUFWriter(path, architecture)
        write_config(writer, model.config)
        write_tokenizer(writer, tiny_tokenizer, pre)
        write_weights(writer, model, kind, architecture)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return model

    return write


def make_model(architecture: str, like: Any) -> Any:
    """A model of another family with the sizes of the tiny Llama; biases and norms are random too."""
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    values = {key: getattr(like, key) for key in (*keys, "num_key_value_heads", "max_position_embeddings")}
    config = AutoConfig.for_model(architecture, **values, tie_word_embeddings=architecture == "qwen2")
    generator = torch.Generator().manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model.eval()


def write_config(writer: GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(config.norm_epsilon)
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)


def write_tokenizer(writer: GGUFWriter, tokenizer: Any, pre: str) -> None:
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    special = {token["content"] for token in content["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in special else NORMAL for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in content["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)


def write_weights(writer: GGUFWriter, model: Any, kind: GGMLQuantizationType, architecture: str) -> None:
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    number = next(number for number, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(number, model.config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        array = weight.numpy()
        module, _, suffix = name.rpartition(".")
        part = module.rpartition(".")[2]
        if architecture == "llama" and part in heads:  # llama.cpp interleaves the two halves of every head
            array = array.reshape(heads[part], 2, -1, array.shape[-1]).swapaxes(1, 2).reshape(array.shape)
        target = f"{names.get_name(module)}.{suffix}"
        if array.ndim > 1 and kind != GGMLQuantizationType.F32:
            writer.add_tensor(target, quantize(np.ascontiguousarray(array), kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, np.ascontiguousarray(array))


@pytest.fixture(scope="session")
def write_wheel() -> Callable[..., Path]:
    """Write a wheel that pip accepts, holding the given files."""

    def write(folder: Path, name: str, files: dict[str, bytes], version: str = "1.0") -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        info = f"{name}-{version}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        path = folder / f"{name}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in files.items():
                archive.writestr(member, content)
            archive.writestr(f"{info}/METADATA", metadata)
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        return path

    return write
