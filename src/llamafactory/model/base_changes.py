"""What a run changed in the base model besides its weights: stretched positions, a larger vocabulary.

A whole model says so in its own config. An adapter has none: its base is read from where it always was. So an adapter
keeps a note beside its weights, and whoever loads it (chat, evaluation, export, further training) makes the same
changes to the base first. Otherwise it would answer with other positions than it was trained with.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from transformers import PreTrainedConfig

from .sources import resolve_adapter


if TYPE_CHECKING:
    from ..hparams import ModelArguments

NOTE_FILE = "base_changes.json"


@dataclass(frozen=True)
class BaseChanges:
    """The note."""

    positions: Mapping[str, Any] | None = None
    """Values of the text config: rope_parameters and max_position_embeddings."""
    num_rows: int | None = None
    """Rows of the embedding, where it grew."""
    ordinary_tokens: Sequence[str] = ()
    """Tokens that were added to the vocabulary, in this order."""
    special_tokens: Sequence[str] = ()
    """Control tokens that were added after them."""


def read_changes(model_args: "ModelArguments") -> BaseChanges:
    """Return the note of the last adapter; an empty one where there is none."""
    names = model_args.adapter_name_or_path or ()
    file = resolve_adapter(names[-1], model_args) / NOTE_FILE if names else None
    if file is None or not file.is_file():
        return BaseChanges()
    return BaseChanges(**json.loads(file.read_text(encoding="utf-8")))


def apply_positions(config: PreTrainedConfig, changes: BaseChanges) -> None:
    """Stretch a config as the note says."""
    text = config.get_text_config()
    for name, value in (changes.positions or {}).items():
        setattr(text, name, value)


def carry_changes(model: PeftModel, changes: BaseChanges) -> None:
    """Let an adapter save the note; the rows of a grown embedding that it trains are in its own weights."""
    if changes == BaseChanges():
        return
    save = model.save_pretrained
    text = json.dumps(asdict(changes), indent=2, sort_keys=True) + "\n"

    def save_pretrained(save_directory: str | Path, *args: Any, is_main_process: bool = True, **kwargs: Any) -> None:
        options = {"save_embedding_layers": False, **kwargs}
        save(str(save_directory), *args, is_main_process=is_main_process, **options)
        if is_main_process:
            (Path(save_directory) / NOTE_FILE).write_text(text, encoding="utf-8")

    vars(model)["save_pretrained"] = save_pretrained
