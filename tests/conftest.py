"""Shared fixtures: a tiny tokenizer, a tiny Llama and small datasets, all made here; nothing is downloaded."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]


def alpaca_rows(num_rows: int = 24) -> list[dict[str, str]]:
    """Rows of very different lengths, so that per-batch means and per-token means differ."""
    rows: list[dict[str, str]] = []
    for index in range(num_rows):
        count = 1 + (index * 7) % 8
        words = " ".join(NUMBERS[:count])
        rows.append(
            {
                "instruction": f"Count to {NUMBERS[count - 1]}.",
                "input": "Start at one." if index % 3 == 0 else "",
                "output": f"{words}." if index % 2 == 0 else f"Sure: {words}. Done with row {index}.",
            }
        )
    return rows


def sharegpt_rows(num_rows: int = 8) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for index in range(num_rows):
        turns = [
            {"from": "human", "value": f"What comes after {NUMBERS[index % 7]}?"},
            {"from": "gpt", "value": f"{NUMBERS[index % 7 + 1]}."},
            {"from": "human", "value": "And before it?"},
            {"from": "gpt", "value": f"{NUMBERS[index % 7]}."},
        ]
        rows.append({"conversations": turns, "system": "You count." if index % 2 else ""})
    return rows


def pair_rows(num_rows: int = 18) -> list[dict[str, str]]:
    """Pairs of a better and a worse answer, of different lengths."""
    return [
        {
            "instruction": f"Say {NUMBERS[index % 8]}, {index}.",
            "chosen": f"{NUMBERS[index % 8]} {' '.join(NUMBERS[: 1 + index % 5])}.",
            "rejected": f"{NUMBERS[(index * 3 + 1) % 8]}!",
        }
        for index in range(num_rows)
    ]


def marked_rows(num_rows: int = 18) -> list[dict[str, Any]]:
    """Single answers, two thirds of them good."""
    return [
        {
            "instruction": f"Say {NUMBERS[index % 8]}, {index}.",
            "output": f"{' '.join(NUMBERS[: 1 + index % 5])} {NUMBERS[(index * 3 + 1) % 8]}.",
            "kto_tag": index % 3 > 0,
        }
        for index in range(num_rows)
    ]


def write_datasets(folder: Path) -> Path:
    """Write five small datasets and their dataset_info.json into folder."""
    identity = [
        {"instruction": "Who are you?", "input": "", "output": "I am {{name}}, made by {{author}}."},
        {"instruction": "What is your name?", "input": "", "output": "My name is {{name}}."},
    ]
    info = {
        "tiny_alpaca": {"file_name": "tiny_alpaca.json"},
        "tiny_sharegpt": {
            "file_name": "tiny_sharegpt.json",
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "system": "system"},
        },
        "tiny_pairs": {
            "file_name": "tiny_pairs.json",
            "ranking": True,
            "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"},
        },
        "tiny_marks": {
            "file_name": "tiny_marks.json",
            "columns": {"prompt": "instruction", "response": "output", "kto_tag": "kto_tag"},
        },
        "tiny_identity": {"file_name": "tiny_identity.json", "values": {"name": "Nova", "author": "the tests"}},
    }
    (folder / "tiny_alpaca.json").write_text(json.dumps(alpaca_rows()), encoding="utf-8")
    (folder / "tiny_sharegpt.json").write_text(json.dumps(sharegpt_rows()), encoding="utf-8")
    (folder / "tiny_pairs.json").write_text(json.dumps(pair_rows()), encoding="utf-8")
    (folder / "tiny_marks.json").write_text(json.dumps(marked_rows()), encoding="utf-8")
    (folder / "tiny_identity.json").write_text(json.dumps(identity), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the tests out of the user's cache, and the user's cache out of the tests."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMAFACTORY_CACHE", str(folder))
        yield folder


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What this package logs."""
    logger = logging.getLogger("llamafactory")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    monkeypatch.setattr(logger, "propagate", False)  # the root logger has the handler too
    caplog.set_level(logging.INFO, logger="llamafactory")
    return caplog


@pytest.fixture(scope="session")
def demo_dataset_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_datasets(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer with ChatML control tokens: any text round-trips."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [json.dumps(row) for row in alpaca_rows()] + [json.dumps(row) for row in sharegpt_rows()]
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_tokenizer_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_tokenizer_dir)


@pytest.fixture(scope="session")
def tiny_llama(tiny_tokenizer: Any) -> Callable[[], Any]:
    """A maker of equal tiny Llamas: every call returns a fresh model with the same weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(seed: int = 0) -> LlamaForCausalLM:
        config = LlamaConfig(
            vocab_size=len(tiny_tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=tiny_tokenizer.bos_token_id,
            eos_token_id=tiny_tokenizer.eos_token_id,
            pad_token_id=tiny_tokenizer.pad_token_id,
            tie_word_embeddings=True,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return LlamaForCausalLM(config)

    return make


@pytest.fixture(scope="session")
def tiny_llama_dir(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama: Callable[[], Any], tiny_tokenizer: Any
) -> Path:
    folder = tmp_path_factory.mktemp("tiny_llama")
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def wide_llama_dir(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """Wide enough for blocks of 64 weights, with an output layer of its own."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=tiny_tokenizer.eos_token_id,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("wide_llama")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder
