"""A model that reads the next tokens of many answers in one forward pass, over keys and values kept in pages.

transformers' own model runs, with an attention of ours (ops/paged_attention.py) that finds each token's row by the
`paged` argument which its forward pass hands down to every layer; there is no padding, no mask and no cache object.
transformers 5.23 has a batching of its own (`generate_batch`). It runs on a CPU, but there every layer gathers all
pages and masks all rows against each other: 3 tokens/s of a 135M model for one answer and 53 for sixteen on two cores,
where plain `generate` makes 20 for one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from ..ops.paged_attention import PagedRows, Pages, Reading, paged_attention
from .adapters import AdapterSwitch
from .native_steps import NativeSteps, native_steps


PAGED_ATTENTION = "llamafactory_paged"
"""The name under which transformers knows the attention."""


@dataclass(frozen=True)
class Segment:
    """The tokens that one row brings into a step; they follow what its pages hold already."""

    tokens: Sequence[int]
    position: int
    """Of the first of them."""
    pages: Sequence[int]
    """All pages of the row so far, with room for these tokens."""
    wants_scores: bool = True
    """Whether the scores of what follows the last token are needed."""
    is_prompt: bool = True
    adapter: str | None = None


@dataclass(frozen=True)
class Step:
    """What the attention needs to know."""

    layers: Sequence[Pages]
    where: PagedRows
    readings: dict[int, Reading]
    """Gets what each layer asks for."""


class PagedModel:
    """Steps of a running batch."""

    def __init__(
        self, model: PreTrainedModel, num_pages: int, *, quantum: int = 1, adapters: AdapterSwitch | None = None
    ) -> None:
        """Make room for the pages; the number of tokens in a forward pass is rounded up to a multiple of `quantum`."""
        register_paged_attention()
        self.model: Any = model
        self.quantum = quantum
        self.num_pages = num_pages
        self.adapters = adapters
        self.layers = make_pages(model, num_pages)
        self.model.set_attn_implementation(PAGED_ATTENTION)
        self.device: torch.device = self.model.get_input_embeddings().weight.device
        self.readings: dict[int, Reading] = {}
        self.native: NativeSteps | None = None
        self.step([Segment([0], 0, [0])])  # fills the readings
        self.native = native_steps(model, self.layers, self.readings)

    @torch.inference_mode()
    def step(self, segments: Sequence[Segment]) -> Tensor:
        """Read all segments; return the scores [S, V] of what follows those that want them, in order."""
        groups: dict[tuple[bool, str], list[int]] = {}
        for place, segment in enumerate(segments):
            is_native = self.native is not None and segment.adapter is None and not segment.is_prompt
            groups.setdefault((is_native, segment.adapter or ""), []).append(place)
        order: list[int] = []
        parts: list[Tensor] = []
        for (is_native, adapter), places in groups.items():
            members = [segments[place] for place in places]
            where = self._locate(members, 1 if is_native else self.quantum)
            parts.append(self._decode(members, where) if is_native else self._forward(members, where, adapter))
            order += [place for place in places if segments[place].wants_scores]
        scores_SV = parts[0] if len(parts) == 1 else torch.cat([part.float() for part in parts])
        return scores_SV if order == sorted(order) else scores_SV[torch.tensor(order).argsort().to(scores_SV.device)]

    def _decode(self, segments: Sequence[Segment], where: PagedRows) -> Tensor:
        native = cast(NativeSteps, self.native)
        return native([segment.tokens[0] for segment in segments], where)

    def _forward(self, segments: Sequence[Segment], where: PagedRows, adapter: str) -> Tensor:
        """Run transformers' model on tokens laid end to end."""
        tokens = [token for segment in segments for token in segment.tokens]
        tokens += [0] * (len(where.rows_T) - len(tokens))
        last = [end - 1 for row, _, end, _ in where.spans if segments[row].wants_scores]
        kept = [*last, *[0] * (-len(last) % self.quantum)]
        if self.adapters is not None:
            self.adapters.use(adapter or None)
        output = self.model(
            input_ids=torch.tensor([tokens], device=self.device),
            position_ids=where.positions_T[None].long(),
            use_cache=False,
            logits_to_keep=torch.tensor(kept or [0], device=self.device),
            paged=Step(self.layers, where, self.readings),
        )
        return output.logits[0, : len(last)]

    def _locate(self, segments: Sequence[Segment], quantum: int) -> PagedRows:
        """Say where each token belongs; padding brings their number to a multiple of the quantum."""
        rows: list[int] = []
        positions: list[int] = []
        spans: list[tuple[int, int, int, int]] = []
        for row, segment in enumerate(segments):
            size = len(segment.tokens)
            spans.append((row, len(rows), len(rows) + size, segment.position))
            rows += [row] * size
            positions += range(segment.position, segment.position + size)
        padding = -len(rows) % quantum
        width = max(len(segment.pages) for segment in segments)
        table = [[*segment.pages, *[0] * (width - len(segment.pages))] for segment in segments]
        table_RN, rows_T, positions_T = (
            torch.tensor(numbers, dtype=torch.int32, device=self.device)
            for numbers in (table, [*rows, *[-1] * padding], [*positions, *[0] * padding])
        )
        return PagedRows(table_RN, rows_T, positions_T, tuple(spans))


def make_pages(model: PreTrainedModel, num_pages: int) -> list[Pages]:
    """Make the pages of all layers, each beside the weights of its layer."""
    num_layers, heads, width = page_shape(model)
    places: dict[int, Tensor] = {}
    for module in model.modules():
        index = getattr(module, "layer_idx", None)
        if isinstance(index, int):
            device = next(module.parameters()).device  # the format of a weight may be that of packed bits
            places.setdefault(index, torch.empty(0, dtype=model.dtype, device=device))
    return [Pages.make(num_pages, heads, width, places[index]) for index in range(num_layers)]


def page_shape(model: PreTrainedModel) -> tuple[int, int, int]:
    """Return the number of layers, of key heads and the width of a head."""
    config: Any = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, heads, width


def page_bytes(model: PreTrainedModel) -> int:
    """Return what one page takes in all layers."""
    num_layers, heads, width = page_shape(model)
    return num_layers * Pages.num_bytes(heads, width, model.dtype)


def register_paged_attention() -> None:
    """Make the name known to transformers; again is no harm."""
    AttentionInterface.register(PAGED_ATTENTION, attend)
    AttentionMaskInterface.register(PAGED_ATTENTION, no_mask)


def no_mask(**_: Any) -> None:
    """Rows and order are in `paged`."""


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **case: Any
) -> tuple[Tensor, None]:
    """Store what is new and return what every token reads, [1, T, H, E]."""
    step: Step = case["paged"]
    scale = case.get("scaling")
    reading = Reading(
        query.shape[-1] ** -0.5 if scale is None else float(scale), case.get("softcap"), case.get("sliding_window")
    )
    step.readings[module.layer_idx] = reading
    out = paged_attention(query[0], (key[0], value[0]), step.layers[module.layer_idx], step.where, reading)
    return out[None], None
