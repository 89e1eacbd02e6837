"""Can a model read pages, how many does it get, and how are its steps padded? All three are found out at start-up."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..extras.device import device_facts
from ..extras.logging import get_logger
from ..model.memory import free_memory
from ..model.model_utils.attention import attention_in_use
from ..model.model_utils.flat_attention import can_attend_flat
from ..model.model_utils.isolation import accepts_bounds
from ..model.model_utils.wrapping import has_virtual_tokens
from ..ops.paged_attention import PAGE
from .adapters import AdapterSwitch
from .paged_model import PagedModel, Segment, page_bytes
from .pages import pages_for


logger = get_logger(__name__)

LENGTHWISE = ("dynamic", "longrope")
SHARE = {"cpu": 0.3}
SHARE_OF_DEVICE = 0.6
SPARE = 1.25  # pages beyond what running answers can need, for prompts that may come again
DEFAULT_POSITIONS = 4096
TOLERATED = {torch.float32: 1e-3}
TOLERATED_HALF = 0.1
QUANTA = {1: (1, 2, 3, 5, 7, 9), 2: (2, 6, 10), 4: (4, 12, 20), 8: (8, 24), 16: (16, 48)}
NUM_ROWS = 64
MOST_WEIGHTS = 2**22


def paged_model(model: PreTrainedModel, max_running: int, adapters: AdapterSwitch | None) -> PagedModel | None:
    """Return the model as one that reads pages; None, with a notice, where its attention is of another kind."""
    lone = lone_reason(model)
    reason = lone or "its attention cannot be replaced"
    if lone is None and can_attend_flat(model) and accepts_bounds(model):
        attention = attention_in_use(model)
        quantum = row_quantum(model)
        paged = PagedModel(model, num_pages(model, max_running), quantum=quantum, adapters=adapters)
        limit = TOLERATED.get(model.dtype, TOLERATED_HALF)
        if paged.native is not None and measure_error(paged, attention) > limit:
            paged.native = None
        error = measure_error(paged, attention) if paged.native is None else 0.0
        if error <= limit:
            logger.info("Up to %s answers are written at once%s.", max_running, " by native code" * bool(paged.native))
            return paged
        reason = f"over pages its scores differ by {error:.2g} standard deviations"
        model.set_attn_implementation(attention)
    logger.warning("%s answers one request at a time: %s.", type(model).__name__, reason)
    return None


def lone_reason(model: PreTrainedModel) -> str | None:
    """Say why the rows of a model depend on more than their own tokens; None where they do not."""
    if has_virtual_tokens(model):
        return "virtual tokens stand before every row"
    parameters = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    if parameters.get("rope_type") in LENGTHWISE:
        return f"its angles change with the longest row ({parameters['rope_type']})"
    return None


def num_pages(model: PreTrainedModel, max_running: int) -> int:
    """Return how many pages fit: for all answers at their longest if memory allows, else what it allows."""
    facts = device_facts()
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or DEFAULT_POSITIONS
    wanted = int(max_running * pages_for(longest) * SPARE)
    share = SHARE.get(facts.kind, SHARE_OF_DEVICE)
    return max(min(wanted, int(free_memory(facts) * share) // page_bytes(model)), pages_for(DEFAULT_POSITIONS // 4))


def row_quantum(model: nn.Module) -> int:
    """Return the least multiple of rows at which this machine's products treat every row alike, bit for bit.

    Libraries compute a product of few rows, or of a number that does not divide among threads, by other code than one
    of many, which rounds differently. Rounded up to this multiple, an answer does not depend on what runs beside it.
    """
    cases = {
        (layer.out_features, layer.in_features, layer.weight.dtype)
        for layer in model.modules()
        if type(layer) is nn.Linear
    }
    if next(model.parameters()).device.type != "cpu":
        return 1
    quantum = max(QUANTA)
    for candidate in sorted(QUANTA, reverse=True):
        if not all(treats_rows_alike(*case, QUANTA[candidate]) for case in cases):
            break
        quantum = candidate
    return quantum


@torch.inference_mode()
def treats_rows_alike(num_out: int, num_in: int, dtype: torch.dtype, counts: Sequence[int]) -> bool:
    """Whether products of so many rows are the same, bit for bit, as the first rows of a larger one.

    The exact result of these products is zero, so that what comes out is nothing but rounding.
    """
    num_out = min(num_out, max(MOST_WEIGHTS // num_in, 1))
    generator = torch.Generator().manual_seed(0)
    half_OD = torch.randn(num_out, -(-num_in // 2), generator=generator).to(dtype)
    half_ND = torch.randn(NUM_ROWS, half_OD.shape[1], generator=generator).to(dtype)
    shuffled = torch.randperm(half_OD.shape[1], generator=generator)
    weight_OD = torch.cat([half_OD, half_OD[:, shuffled]], dim=1)[:, :num_in].contiguous()
    x_ND = torch.cat([half_ND, -half_ND[:, shuffled]], dim=1)[:, :num_in].contiguous()
    whole_NO = nn.functional.linear(x_ND, weight_OD)
    return all(torch.equal(nn.functional.linear(x_ND[:count], weight_OD), whole_NO[:count]) for count in counts)


def measure_error(paged: PagedModel, attention: str) -> float:
    """Return how far the scores of a step are from those of the plain model, in their standard deviations."""
    generator = torch.Generator().manual_seed(0)
    size = PAGE + 8
    num_tokens: int = paged.model.get_input_embeddings().weight.shape[0]
    ids: list[list[int]] = torch.randint(0, num_tokens, (2, size), generator=generator).tolist()
    first, second = list(range(pages_for(size))), list(range(pages_for(size), 2 * pages_for(size)))
    steps = [
        [Segment(ids[0][:-2], 0, first), Segment(ids[1][: size // 2], 0, second)],
        [Segment(ids[1][size // 2 : -1], size // 2, second), Segment(ids[0][-2:-1], size - 2, first, is_prompt=False)],
        [
            Segment([row[-1]], size - 1, pages, is_prompt=False)
            for row, pages in zip(ids, (first, second), strict=True)
        ],
    ]
    scores = torch.stack([paged.step(step) for step in steps])[-1].float()
    model: Any = paged.model
    used = model.config._attn_implementation
    model.set_attn_implementation(attention)
    with torch.inference_mode():
        plain = model(torch.tensor(ids, device=paged.device), use_cache=False).logits[:, -1].float()
    model.set_attn_implementation(used)
    return float((scores - plain).abs().mean() / plain.std())
