"""From the user's files to rows of token ids: conversations, templates, encoding, batches."""

from .collator import PaddingCollator
from .conversation import Conversation, Message, Role
from .loader import get_dataset, split_dataset
from .template import TEMPLATES, Template, get_template_and_fix_tokenizer


__all__ = [
    "TEMPLATES",
    "Conversation",
    "Message",
    "PaddingCollator",
    "Role",
    "Template",
    "get_dataset",
    "get_template_and_fix_tokenizer",
    "split_dataset",
]
