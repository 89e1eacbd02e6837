"""How far gradients lie from those of transformers and PEFT: in float32, and what bfloat16 makes of both.

Both sides get the same adapter weights (drawn, because fresh ones leave most gradients zero) and the same batches:
here rows end to end through our modules, there padded rows through transformers and PEFT as they are. A distance is
the norm of the difference over all adapter weights, as a share of the norm of the reference's float32 gradient.
"""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .job import Job
from .reference import IGNORED, collate, has_bf16, load_model


Rows = Sequence[Mapping[str, list[int]]]
Gradients = dict[str, Tensor]
GetGradients = Callable[[Rows], Gradients]
FP32_LIMIT = 1e-5
SPREAD = 2.0
"""A mean difference of fewer standard errors than this is chance."""
DRAWN = 0.02
"""Size of the adapter weights, about that of trained ones."""


def measure(job: Job) -> dict[str, Any]:
    """Measure every batch of the job on both sides, in float32 and, where it is fast, in bfloat16."""
    rows: Any = json.loads(Path(job.ids).read_text(encoding="utf-8"))
    batches = [rows[start : start + job.batch] for start in range(0, job.batch * job.steps, job.batch)]
    truth = all_gradients(reference_gradients(job, bf16=False), batches)
    result: dict[str, Any] = {"fp32_ours": distances(ours_gradients(job, bf16=False), batches, truth)}
    if has_bf16():
        result["bf16_reference"] = distances(reference_gradients(job, bf16=True), batches, truth)
        result["bf16_ours"] = distances(ours_gradients(job, bf16=True), batches, truth)
    return {**result, "checks": list(checks(result))}


def all_gradients(get: GetGradients, batches: Sequence[Rows]) -> list[Gradients]:
    """Return the gradients of every batch; the model behind `get` goes with it, so that one is held at a time."""
    return [get(batch) for batch in batches]


def distances(get: GetGradients, batches: Sequence[Rows], truth: Sequence[Gradients]) -> list[float]:
    """Return the distance from the truth for every batch."""
    return [distance(get(batch), right) for batch, right in zip(batches, truth, strict=True)]


def distance(some: Gradients, right: Gradients) -> float:
    """Return the norm of the difference as a share of the norm of what is right."""
    if some.keys() != right.keys():
        raise ValueError("The two sides do not train the same weights.")
    apart = sum(float((some[name] - right[name]).double().square().sum()) for name in right)
    return (apart / sum(float(value.double().square().sum()) for value in right.values())) ** 0.5


def checks(result: Mapping[str, Sequence[float]]) -> Iterator[dict[str, Any]]:
    """Yield what the distances must show."""
    names = {"side": "ours", "over": "reference"}
    largest = max(result["fp32_ours"])
    yield {
        **names,
        "what": "LoRA gradients in float32",
        "largest_difference": largest,
        "limit": FP32_LIMIT,
        "is_equal": largest <= FP32_LIMIT,
    }
    if "bf16_ours" in result:
        pairs = zip(result["bf16_ours"], result["bf16_reference"], strict=True)
        differences = [mine - theirs for mine, theirs in pairs]
        error = statistics.stdev(differences) / len(differences) ** 0.5
        yield {
            **names,
            "what": "LoRA gradients in bfloat16",
            "mine": statistics.mean(result["bf16_ours"]),
            "theirs": statistics.mean(result["bf16_reference"]),
            "mean_difference": statistics.mean(differences),
            "standard_error": error,
            "num_batches": len(differences),
            "is_equal": statistics.mean(differences) <= SPREAD * error,
        }


def reference_gradients(job: Job, *, bf16: bool) -> GetGradients:
    """Ready transformers and PEFT; the function returns the gradients of a padded batch's mean loss."""
    model = load_model(job, bf16).train()
    draw_adapters(model)

    def get(rows: Rows) -> Gradients:
        batch = collate(rows, pad=0)
        num_learned = (batch["labels"][:, 1:] != IGNORED).sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(**batch, use_cache=False, num_items_in_batch=num_learned).loss
        return gradients_of(model, loss)

    return get


def ours_gradients(job: Job, *, bf16: bool) -> GetGradients:
    """Ready this package's model; the function returns the gradients of the mean loss of rows end to end."""
    from ..data.collator import FlatCollator
    from ..extras.device import device_facts
    from ..hparams import get_train_args
    from ..model.dtype import choose_dtype, training_flags
    from ..model.loader import load_model as load_ours
    from ..model.loader import load_tokenizer
    from ..model.model_utils.attention import use_flat_attention
    from ..train.objective import Models
    from ..train.sft.objective import objective_for
    from .rows import train_config

    model_args, _, training_args, finetuning_args, _ = get_train_args({**train_config(job), "bf16": bf16})
    tokenizer = load_tokenizer(model_args)["tokenizer"]
    dtypes = choose_dtype(training_flags(training_args, finetuning_args), device_facts())
    model = load_ours(tokenizer, model_args, finetuning_args, is_trainable=True, dtype=dtypes)
    use_flat_attention(model, model_args.flash_attn)
    draw_adapters(model)
    objective, collator = objective_for(model), FlatCollator(tokenizer, with_bounds=True)

    def get(rows: Rows) -> Gradients:
        batch = collator([{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = objective(Models(model, {}), batch)
        return gradients_of(model, loss.total / loss.weight)

    return get


def draw_adapters(model: Any) -> None:
    """Give the trained weights of either side the same values."""
    generator = torch.Generator().manual_seed(0)
    for _, weight in sorted(trained(model).items()):
        weight.data = DRAWN * torch.randn(weight.shape, generator=generator)


def gradients_of(model: Any, loss: Tensor) -> Gradients:
    """Return the gradients of the trained weights."""
    weights = trained(model)
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


def trained(model: Any) -> dict[str, Tensor]:
    """Return the weights that learn, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
