"""Arguments of text generation in chat, API and prediction."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from .kinds import Arguments, Count, Natural, NonNegative, Positive


@dataclass(frozen=True, kw_only=True)
class GeneratingArguments(Arguments):
    """Generation."""

    do_sample: bool = True
    """Draws from the likely words; off always takes the likeliest, so answers repeat exactly."""
    temperature: NonNegative = 0.95
    """Higher is more varied, lower more predictable; 0 is the same as `do_sample: false`."""
    top_p: Annotated[float, Interval(gt=0, le=1)] = 0.7
    """Draws only from the likeliest words that together hold this share."""
    top_k: Natural = 50
    """Draws only from this many of the likeliest words; 0 sets no limit."""
    num_beams: Count = 1
    """Candidate answers followed at the same time; more is slower."""
    max_length: Count = 1024
    """Cap on prompt plus answer in tokens, used only when `max_new_tokens` is 0."""
    max_new_tokens: Natural = 1024
    """Cap on the answer in tokens."""
    repetition_penalty: Positive = 1.0
    """Above 1 makes words that already appeared less likely."""
    length_penalty: float = 1.0
    """Beam search: above 0 favours longer answers, below 0 shorter ones."""
    skip_special_tokens: bool = True
    """Leaves control tokens out of the text."""
