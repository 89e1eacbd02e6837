"""What an adapter needs of a run besides the weights: its length, and a look at the data."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import TrainerCallback

from ..data.collator import PaddingCollator
from ..extras.errors import UserError
from ..extras.logging import get_logger
from ..model.adapters.adalora import ranks_of
from .callbacks.adalora import RankCallback


if TYPE_CHECKING:
    from ..hparams import FinetuningArguments

logger = get_logger(__name__)

NUM_ROWS = 256
"""Rows that EVA looks at; the directions settle after far fewer."""
ROWS_AT_ONCE = 4
INPUTS = ("input_ids", "chosen_input_ids", "prompt_input_ids")


def adapter_callbacks(model: nn.Module, finetuning: "FinetuningArguments") -> list[TrainerCallback]:
    """Return the callbacks that the method of tuning needs."""
    ranks = ranks_of(model)
    if ranks is None:
        return []
    return [RankCallback(ranks, finetuning.adalora_start, finetuning.adalora_end)]


def start_from_data(model: nn.Module, rows: Iterable[Mapping[str, Any]], tokenizer: Any) -> None:
    """Let EVA (arxiv.org/abs/2410.07170) point each adapter along what its layer sees most; others start as they are.

    Every rank looks at the same rows, so all begin alike. A resumed run reads its adapter from the checkpoint instead.
    """
    if not isinstance(model, PeftModel) or getattr(model.active_peft_config, "init_lora_weights", None) != "eva":
        return
    from peft import initialize_lora_eva_weights

    batches = list(_batches(itertools.islice(rows, NUM_ROWS), tokenizer, next(model.parameters()).device))
    was_training = model.training
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        initialize_lora_eva_weights(
            model, dataloader=batches, gather_distributed_inputs=False, show_progress_bar=False
        )
    model.train(was_training)
    logger.info("EVA: the adapter starts from what its layers see in %s batches of the data.", len(batches))


def _batches(rows: Iterable[Mapping[str, Any]], tokenizer: Any, device: torch.device) -> Iterator[dict[str, Tensor]]:
    collate = PaddingCollator(tokenizer)
    for group in _groups(rows):
        name = next((name for name in INPUTS if name in group[0]), None)
        if name is None:
            raise UserError("lora_init: eva cannot read the rows of this stage; take another lora_init.")
        batch = collate([{"input_ids": row[name]} for row in group])
        yield {key: value.to(device) for key, value in batch.items()}


def _groups(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], ...]]:
    source = iter(rows)
    while group := tuple(itertools.islice(source, ROWS_AT_ONCE)):
        yield group
