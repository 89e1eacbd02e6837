"""Our side of the training tasks: the whole of `llamafactory-cli train`, with a clock."""

import json
from pathlib import Path
from typing import Any

from ..extras.constants import TRAINER_LOG
from ..extras.garbage import importing
from .job import Job
from .rows import train_config


def train(job: Job) -> dict[str, Any]:
    """Train as a user would; only what the reference shares is set, the rest is at its defaults."""
    with importing():  # as `train` imports them
        from ..train.tuner import run_exp
        from .clock import Clock

    clock = Clock(job)
    config = {
        **train_config(job),
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "plot_loss": False,
        "disable_tqdm": True,
    }
    run_exp(config, callbacks=[clock])
    work = json.loads(Path(job.ids).with_name("work.json").read_text(encoding="utf-8"))
    lines = (Path(job.folder) / "out" / TRAINER_LOG).read_text(encoding="utf-8").splitlines()
    seen = json.loads(lines[-1]).get("total_tokens", 0) + count_shared(job)
    return {**clock.figures(work["tokens"], work["supervised"]), "tokens_seen": seen, **_formats(job)}


def count_shared(job: Job) -> int:
    """Count the tokens of prompts that a pair holds twice and our batches once."""
    if job.stage != "dpo":
        return 0
    from ..data.collator import part
    from ..data.shared_prefix import shared_length

    pairs = json.loads(Path(job.ids).read_text(encoding="utf-8"))[: job.batch * job.accumulation * job.steps]
    return sum(shared_length(part(pair, "chosen_"), part(pair, "rejected_")) for pair in pairs)


def _formats(job: Job) -> dict[str, Any]:
    import torch

    from ..extras.device import device_facts

    return {"bf16": job.settings.get("bf16", device_facts().bf16), "num_threads": torch.get_num_threads()}
