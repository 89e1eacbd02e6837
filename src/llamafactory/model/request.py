"""What every pass over a model gets to know."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .dtype import DtypeChoice


if TYPE_CHECKING:
    from ..hparams import FinetuningArguments, ModelArguments

Head = Literal["words", "score", "value"]
"""What stands on the decoder: words alone, one score per sequence instead (a reward model), or words and a value."""


@dataclass(frozen=True, kw_only=True)
class LoadRequest:
    """One call of `load_model`, with everything decided."""

    model_args: "ModelArguments"
    finetuning_args: "FinetuningArguments"
    is_trainable: bool
    dtypes: DtypeChoice
    head: Head = "words"
    new_token_ids: tuple[int, ...] = ()
    """Tokens that this run added, whose rows have to be learned."""

    @property
    def is_by_unsloth(self) -> bool:
        """Whether the model is read and computed by Unsloth, so that nobody else may exchange its parts."""
        return self.model_args.use_unsloth and self.is_trainable
