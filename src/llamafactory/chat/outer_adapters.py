"""Adapters for the engines of other packages, which read them from their folders and know LoRA alone."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..extras.errors import UserError
from ..model.base_changes import NOTE_FILE
from ..model.sources import ADAPTER_CONFIG, resolve_adapter
from .adapters import read_adapters


if TYPE_CHECKING:
    from ..hparams import ModelArguments

OWN = "adapter"
"""The name of the run's own adapter, which answers where a request names none."""


class OuterAdapters(NamedTuple):
    """What an engine loads."""

    folders: dict[str, Path]
    own: str | None
    """The adapter that every request gets."""
    highest_rank: int

    @property
    def named(self) -> tuple[str, ...]:
        """What requests may name."""
        return tuple(name for name in self.folders if name != self.own)


def find_outer_adapters(model_args: "ModelArguments") -> OuterAdapters:
    """Find the adapters of a run; one that such an engine cannot read is refused with what to do."""
    own = model_args.adapter_name_or_path or ()
    named = read_adapters(model_args.infer_adapters or ())
    if own and named:
        raise UserError(
            f"infer_backend: {model_args.infer_backend} puts one adapter on the model at a time: give "
            "adapter_name_or_path or infer_adapters, or merge the former with `export` first."
        )
    if len(own) > 1:
        raise UserError(
            f"infer_backend: {model_args.infer_backend} takes one adapter, not {len(own)}; merge them with `export`."
        )
    paths = {OWN: own[0]} if own else named
    folders = {name: resolve_adapter(path, model_args) for name, path in paths.items()}
    ranks = [read_rank(folder, model_args.infer_backend) for folder in folders.values()]
    return OuterAdapters(folders, OWN if own else None, max(ranks, default=0))


def read_rank(folder: Path, backend: str) -> int:
    """Return the largest rank of an adapter that is plain LoRA; refuse any other."""
    config: dict[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    kind = str(config.get("peft_type"))
    reason = ""
    if kind != "LORA":
        reason = f"it is of the kind {kind}"
    elif config.get("use_dora"):
        reason = "it is DoRA"
    elif config.get("modules_to_save") or config.get("trainable_token_indices"):
        reason = "it holds whole weights beside LoRA's"
    elif (folder / NOTE_FILE).is_file():
        reason = "it changes the base model's positions or vocabulary"
    if reason:
        raise UserError(
            f"infer_backend: {backend} cannot read the adapter {folder}: {reason}. Merge it with `export` and serve "
            "the result."
        )
    ranks = [int(config.get("r") or 0), *(int(rank) for rank in (config.get("rank_pattern") or {}).values())]
    return max(ranks)
