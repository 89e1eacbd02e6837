"""`precompute_ref_logps`: the reference is asked once, before training, and its words become columns of the rows.

Later epochs, further runs and resumed ones read them from the cache, and no reference model stays in memory. The key
is made of the content: ids and labels of the rows, weights of the reference, its number format, and the code that
computes. What is done is kept in pieces, so that a stopped run goes on where it was. Needs a model that fits on each
device whole.
"""

import hashlib
import inspect
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from accelerate.utils import gather_object, send_to_device
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..data.fingerprint import code_digest
from ..data.mismatch import MismatchedRows
from ..extras.device import current_device, device_facts
from ..extras.env import read_env
from ..extras.logging import get_logger
from ..extras.version import VERSION
from ..model import readout
from ..model.dtype import choose_dtype, training_flags
from ..ops import head, logprobs, preference
from . import answers, sequences
from .answers import AnswerCollator, answer_log_probs, reference_column
from .objective import Batch
from .reference import REFERENCE, make_reference, measuring
from .stage import StageContext


logger = get_logger(__name__)

PIECE = 512  # rows that are kept together: what is lost when a run is stopped
SAMPLED = 4096  # numbers of each weight that go into the key, beside its sum


class Asked(NamedTuple):
    """The reference, and how it computes."""

    model: nn.Module
    device: torch.device
    autocast: torch.dtype | None
    ld_alpha: float | None
    batch_size: int


def annotate_rows(context: StageContext, rows: Any, collators: Sequence[AnswerCollator]) -> Any:
    """Return the rows (a dataset, or several by name, or None) with the columns of `reference_column`."""
    if rows is None:
        return None
    asked = ask_whom(context)
    named = rows if isinstance(rows, dict) else {"": rows}
    done = {name: add_columns(part, compute_columns(asked, part, collators)) for name, part in named.items()}
    return done if isinstance(rows, dict) else done[""]


def ask_whom(context: StageContext) -> Asked:
    """Return the reference: at this moment, the model that is going to be trained is it, unless another was named."""
    finetuning, training = context.arguments.finetuning, context.arguments.training
    is_other = finetuning.ref_model is not None or bool(finetuning.ref_model_adapters) or not training.do_train
    model = make_reference(context)[REFERENCE] if is_other else context.model
    device = torch.device("cpu") if training.use_cpu else current_device(read_env().local_rank or 0)
    kind = choose_dtype(training_flags(training, finetuning), device_facts()).autocast
    autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(kind or "")
    return Asked(model.to(device), device, autocast, finetuning.ld_alpha, training.per_device_train_batch_size)


def compute_columns(asked: Asked, rows: Any, collators: Sequence[AnswerCollator]) -> dict[str, list[float]]:
    """Return the columns, from the cache as far as they are there; the ranks share the work."""
    env = read_env()
    folder = env.cache_dir / "reference_logps" / key_of(asked, rows, collators)
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(rows), PIECE)
    own = list(starts)[env.rank :: env.world_size]
    num_known = sum((folder / f"{start}.safetensors").is_file() for start in own)
    logger.info(f"Reference log-probabilities of {len(rows)} rows: {num_known} of {len(own)} pieces are in {folder}.")
    pieces = [(start, read_or_make(folder, start, asked, rows, collators)) for start in own]
    if env.is_distributed:
        pieces = gather_object(pieces)
    ordered = [piece for _, piece in sorted(pieces, key=lambda item: item[0])]
    return {name: [number for piece in ordered for number in piece[name]] for name in ordered[0]}


def read_or_make(
    folder: Path, start: int, asked: Asked, rows: Any, collators: Sequence[AnswerCollator]
) -> dict[str, list[float]]:
    """Return one piece of the columns."""
    file = folder / f"{start}.safetensors"
    if not file.is_file():
        part = range(start, min(start + PIECE, len(rows)))
        with measuring(asked.model):
            columns = {name: values for collate in collators for name, values in ask(asked, rows, part, collate)}
        aside = file.with_suffix(f".{read_env().rank}.part")
        save_file(columns, aside)
        aside.replace(file)
    return {name: values.tolist() for name, values in load_file(file).items()}


def ask(asked: Asked, rows: Any, part: range, collate: AnswerCollator) -> Iterator[tuple[str, Tensor]]:
    """Compute the columns that stand for the answers of one collator."""
    found: list[Tensor] = []
    for start in range(part.start, part.stop, asked.batch_size):
        batch = collate([rows[index] for index in range(start, min(start + asked.batch_size, part.stop))])
        kind = asked.autocast or torch.bfloat16
        with torch.autocast(asked.device.type, dtype=kind, enabled=asked.autocast is not None):
            moved = cast(Batch, send_to_device(batch, asked.device))
            sums_S = answer_log_probs(asked.model, moved, asked.ld_alpha).sums_S
        found.append(sums_S.float().cpu().view(len(collate.prefixes), -1))
    columns = torch.cat(found, dim=1)
    for prefix, values in zip(collate.prefixes, columns, strict=True):
        yield reference_column(prefix), values.contiguous()


def add_columns(rows: Any, columns: dict[str, list[float]]) -> Any:
    """Return the rows with further columns."""
    if isinstance(rows, MismatchedRows):
        return MismatchedRows(add_columns(rows.rows, columns), rows.cutoff_len)
    if not hasattr(rows, "add_column"):
        return [{**row, **{name: values[index] for name, values in columns.items()}} for index, row in enumerate(rows)]
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    return rows


def key_of(asked: Asked, rows: Any, collators: Sequence[AnswerCollator]) -> str:
    """Hash what the numbers depend on."""
    total = hashlib.blake2b(digest_size=16)
    total.update(repr((VERSION, own_code(), code_digest(), asked.autocast, asked.ld_alpha)).encode())
    prefixes = [prefix for collate in collators for prefix in collate.prefixes]
    for index in range(len(rows)):
        row = rows[index]
        for prefix in prefixes:
            for name in ("input_ids", "labels"):
                numbers = np.asarray(row[f"{prefix}{name}"], dtype=np.int32)
                total.update(len(numbers).to_bytes(4, "little") + numbers.tobytes())
    for digest in weight_digests(asked.model):
        total.update(digest)
    return total.hexdigest()


def weight_digests(model: nn.Module) -> Iterator[bytes]:
    """Describe each weight by its name, shape, format, sum and a sample; adapters that add nothing are left out.

    Reading every number of a large model would take longer than the key is worth; training moves all of them.
    """
    is_fresh = isinstance(model, PeftModel) and adds_nothing(model)
    for name, weight in model.named_parameters():
        if is_fresh and (".lora_" in name or ".modules_to_save." in name):
            continue
        flat = weight.detach().flatten()
        sample = flat[:: max(flat.numel() // SAMPLED, 1)].float().cpu()
        described = (name, tuple(weight.shape), str(weight.dtype), float(flat.sum(dtype=torch.float64)))
        yield repr(described).encode() + sample.numpy().tobytes()


def adds_nothing(model: nn.Module) -> bool:
    """Whether every LoRA update is still 0."""
    return not any(bool(weight.any()) for name, weight in model.named_parameters() if ".lora_B." in name)


@cache
def own_code() -> str:
    """Hash the source of what computes log-probabilities."""
    modules = (readout, head, logprobs, preference, answers, sequences)
    return hashlib.blake2b("".join(map(inspect.getsource, modules)).encode(), digest_size=16).hexdigest()
