"""From the user's files to rows of token ids: conversations, templates, encoding, batches."""

from .collator import (
    FlatCollator,
    KTODataCollatorWithPadding,
    MultiModalDataCollatorForSeq2Seq,
    PackedCollator,
    PaddingCollator,
    PairwiseDataCollatorWithPadding,
    SFTDataCollatorWith4DAttentionMask,
)
from .conversation import Conversation, Message, Role
from .loader import get_dataset, split_dataset
from .template import TEMPLATES, Template, get_template_and_fix_tokenizer


__all__ = [
    "TEMPLATES",
    "Conversation",
    "FlatCollator",
    "KTODataCollatorWithPadding",
    "Message",
    "MultiModalDataCollatorForSeq2Seq",
    "PackedCollator",
    "PaddingCollator",
    "PairwiseDataCollatorWithPadding",
    "Role",
    "SFTDataCollatorWith4DAttentionMask",
    "Template",
    "get_dataset",
    "get_template_and_fix_tokenizer",
    "split_dataset",
]
