"""Speed on one GPU with the shapes of known models: random weights and made-up text, so nothing is downloaded.

Rows are single documents of the full length, the harder case: shorter documents packed into a row cost less attention.
The shapes are those that the models' own config files say.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from .job import Job
from .ours import train as train_ours
from .preprocess import CHATML
from .rows import DATASET, INFO, WORDS, count_work, encode


SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    },
}
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def train(job: Job) -> dict[str, Any]:
    """Train a model of the shape in `settings`; the other settings are keys of the configuration."""
    import torch

    settings = dict(job.settings)
    for name in ("rows", "new_tokens", "source"):
        settings.pop(name, None)
    shape = SHAPES[settings.pop("shape")] | settings.pop("changes", {})
    own = {name: settings.pop(name) for name in ("batch", "accumulation", "cutoff_len") if name in settings}
    folder = Path(job.folder)
    model = write_model(folder / "model", shape)
    write_documents(folder, num_rows=own["batch"] * own["accumulation"] * job.steps, num_words=own["cutoff_len"])
    method = settings["finetuning_type"]
    made = replace(
        job,
        model=str(model),
        stage="sft",
        method=method,
        dataset=DATASET,
        dataset_dir=str(folder),
        ids=str(folder / "ids.json"),
        settings={"train_from_scratch": True, "packing": True, **settings},
        **own,
    )
    rows = [dict(row) for row in encode(made)]
    (folder / "work.json").write_text(json.dumps(count_work(rows, made)), encoding="utf-8")
    result = train_ours(made)
    if torch.cuda.is_available():
        result["peak_device_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        result["device"] = torch.cuda.get_device_name(0)
    return result


def write_model(folder: Path, shape: dict[str, Any]) -> Path:
    """Write a config and a tokenizer for the made-up text; the weights are drawn when training starts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=list(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 20, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=CONTROL[1],
        eos_token=CONTROL[2],
        pad_token=CONTROL[0],
        chat_template=CHATML,
    )
    folder.mkdir(parents=True)
    fast.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    return folder


def write_documents(folder: Path, num_rows: int, num_words: int) -> None:
    """Write rows of at least so many tokens; the cutoff makes them all equally long."""
    words = WORDS.split()
    rows = [
        {
            "instruction": f"Text {number}",
            "input": "",
            "output": " ".join(words[(number + index * (number + 1)) % len(words)] for index in range(num_words)),
        }
        for number in range(num_rows)
    ]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps({DATASET: INFO["sft"]}), encoding="utf-8")
