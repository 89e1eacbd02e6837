"""The other side of fine-tuning: transformers.Trainer and PEFT as their documentation shows them, nothing of ours.

Ids and labels are given, so that both sides learn the same tokens. Packed rows come with positions that start again at
every document and without a mask, which is how transformers itself keeps documents apart.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Trainer, TrainingArguments, set_seed

from .clock import Clock
from .job import Job
from .tasks import LORA_RANK


SEED = 42
IGNORED = -100


def train(job: Job) -> dict[str, Any]:
    """Train for the steps of the job."""
    clock, counts = Clock(job), Counts()
    rows: Any = json.loads(Path(job.ids).read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    has_cuda, bf16 = torch.cuda.is_available(), wants_bf16(job)
    arguments = TrainingArguments(
        output_dir=str(Path(job.folder) / "out"),
        per_device_train_batch_size=job.batch,
        gradient_accumulation_steps=job.accumulation,
        max_steps=job.steps,
        learning_rate=job.learning_rate,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        bf16=bf16,
        activation_checkpointing=job.settings.get("gradient_checkpointing", False),
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not has_cuda,
        seed=SEED,
    )
    model = load_model(job, bf16)

    def make_batch(chosen: list[Any]) -> dict[str, Tensor]:
        counts.add(chosen)
        return collate(chosen, pad)

    Trainer(model, arguments, make_batch, train_dataset=rows, callbacks=[clock]).train()
    tokens, supervised = counts.by_step(job.accumulation)
    return {
        **clock.figures(tokens, supervised),
        "tokens_seen": sum(tokens),
        "bf16": bf16,
        "num_threads": torch.get_num_threads(),
    }


def load_model(job: Job, bf16: bool) -> Any:
    """Load the model: what is trained in float32, a frozen base below adapters in bfloat16 where that is fast."""
    frozen = torch.bfloat16 if bf16 else torch.float32
    set_seed(SEED)
    options = {"quantization_config": four_bits(frozen)} if "quantization_bit" in job.settings else {}
    dtype = frozen if job.method == "lora" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype, **options)
    if job.method != "lora":
        return model

    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if options:
        model = prepare_model_for_kbit_training(model)
    config = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def four_bits(dtype: torch.dtype) -> BitsAndBytesConfig:
    """QLoRA's weights, as PEFT's documentation has them."""
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def wants_bf16(job: Job) -> bool:
    """Tell whether a job computes in bfloat16: where it is fast, unless the job says float32."""
    return job.settings.get("bf16") is not False and has_bf16()


def has_bf16() -> bool:
    """Tell whether bfloat16 is fast here, as torch says it."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    probe: Any = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return probe is not None and bool(probe())


def collate(rows: Sequence[Mapping[str, Sequence[int]]], pad: int) -> dict[str, Tensor]:
    """Pad rows to the longest; packed ones get positions and no mask, others a mask and no positions."""
    width = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, fill: int) -> Tensor:
        return torch.tensor([[*row[name], *[fill] * (width - len(row[name]))] for row in rows])

    batch = {"input_ids": padded("input_ids", pad), "labels": padded("labels", IGNORED)}
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    if "position_ids" in rows[0]:
        places = [[*row["position_ids"], *range(width - len(row["input_ids"]))] for row in rows]
        return {**batch, "position_ids": torch.tensor(places)}
    return {**batch, "attention_mask": (torch.arange(width) < lengths.unsqueeze(1)).long()}


class Counts:
    """Counts the real tokens of batches as they are made."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.supervised: list[int] = []

    def add(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> None:
        """Count the rows of a batch; the first token of a row is predicted by nothing."""
        self.tokens.append(sum(len(row["input_ids"]) for row in rows))
        self.supervised.append(sum(label != IGNORED for row in rows for label in row["labels"][1:]))

    def by_step(self, accumulation: int) -> tuple[list[int], list[int]]:
        """Add up the batches of each step."""

        def sums(counts: list[int]) -> list[int]:
            return [sum(counts[start : start + accumulation]) for start in range(0, len(counts), accumulation)]

        return sums(self.tokens), sums(self.supervised)
