"""What every pass over a model gets to know."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .dtype import DtypeChoice


if TYPE_CHECKING:
    from ..hparams import FinetuningArguments, ModelArguments


@dataclass(frozen=True, kw_only=True)
class LoadRequest:
    """One call of `load_model`, with everything decided."""

    model_args: "ModelArguments"
    finetuning_args: "FinetuningArguments"
    is_trainable: bool
    dtypes: DtypeChoice
