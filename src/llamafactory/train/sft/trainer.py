"""The name under which other code imports the driver."""

from ..trainer import CustomSeq2SeqTrainer


__all__ = ["CustomSeq2SeqTrainer"]
