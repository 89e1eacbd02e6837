"""The other side of DPO: a plain loop written from the paper, on transformers and PEFT as they are.

Loss (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, eq. 7): -log sigmoid(beta * ((log p(chosen) - log
p_ref(chosen)) - (log p(rejected) - log p_ref(rejected)))), log p summed over the answer. The reference is the model
with its adapter switched off. Both answers of all pairs of a batch stand in one padded tensor, with activations
recomputed, as people run it today.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .clock import Clock
from .job import Job
from .reference import IGNORED, collate, load_model, wants_bf16
from .tasks import DPO_BETA


MAX_GRAD_NORM = 1.0


def train(job: Job) -> dict[str, Any]:
    """Train for the steps of the job."""
    clock = Clock(job)
    pairs: Any = json.loads(Path(job.ids).read_text(encoding="utf-8"))
    bf16, device = wants_bf16(job), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(job, bf16).to(device).train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=job.learning_rate, weight_decay=0.0, fused=True)
    tokens: list[int] = []
    supervised: list[int] = []
    clock.begin()
    for start in range(0, job.batch * job.steps, job.batch):
        rows = both_answers(pairs[start : start + job.batch])
        tokens.append(sum(len(row["input_ids"]) for row in rows))
        supervised.append(sum(label != IGNORED for row in rows for label in row["labels"][1:]))
        batch = {name: values.to(device) for name, values in collate(rows, pad=0).items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = dpo_loss(model, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        clock.note(loss.item(), norm.item())
        clock.mark()
    return {
        **clock.figures(tokens, supervised),
        "tokens_seen": sum(tokens),
        "bf16": bf16,
        "num_threads": torch.get_num_threads(),
    }


def both_answers(pairs: Sequence[Mapping[str, list[int]]]) -> list[dict[str, list[int]]]:
    """Lay the chosen answers before the rejected ones."""
    return [
        {"input_ids": pair[f"{kind}_input_ids"], "labels": pair[f"{kind}_labels"]}
        for kind in ("chosen", "rejected")
        for pair in pairs
    ]


def dpo_loss(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the mean loss of the pairs of a batch."""
    chosen, rejected = answer_log_probs(model, batch).chunk(2)
    with torch.no_grad(), model.disable_adapter():
        chosen_reference, rejected_reference = answer_log_probs(model, batch).chunk(2)
    margins = (chosen - chosen_reference) - (rejected - rejected_reference)
    return -torch.nn.functional.logsigmoid(DPO_BETA * margins).mean()


def answer_log_probs(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the summed log-probability of every row's labels."""
    logits_BTV = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits[
        :, :-1
    ]
    labels_BT = batch["labels"][:, 1:]
    is_learned_BT = labels_BT != IGNORED
    logps_BT = torch.gather(
        logits_BTV.float().log_softmax(dim=-1), 2, labels_BT.where(is_learned_BT, 0).unsqueeze(2)
    ).squeeze(2)
    return (logps_BT * is_learned_BT).sum(dim=1)
