"""Finds out whether a loaded model is a decoder that ops/decoder.py computes, by its structure and not by its name."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..model.fused.blocks import mlp_activation, norm_eps
from ..model.fused.replacement import is_plain_weight, is_watched
from ..ops.decoder import DecoderLayer, DecoderWeights, NativeDecoder, native_decoder
from ..ops.paged_attention import PagedRows, Pages, Reading


MODEL_PARTS = {"embed_tokens", "layers", "norm", "rotary_emb"}
LAYER_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
HEAD_NORMS = ("q_norm", "k_norm")


class NativeSteps:
    """One token for each of several rows, without transformers' code for the layers."""

    def __init__(self, decoder: NativeDecoder, rotary: nn.Module, dtype: torch.dtype) -> None:
        self.decoder, self.rotary = decoder, rotary
        self.example = torch.zeros(1, dtype=dtype)  # angles are rounded to the model's format, as in its own code

    def __call__(self, tokens: Sequence[int], where: PagedRows) -> Tensor:
        """Return the scores [M, V] in float32; row i of the table has token i."""
        cos, sin = self.rotary(self.example, position_ids=where.positions_T[None].long())
        angles = cos[0].float(), sin[0].float()
        return self.decoder.step(torch.tensor(tokens), where.table_RN, where.positions_T, angles)


def native_steps(
    model: PreTrainedModel, pages: Sequence[Pages], readings: Mapping[int, Reading]
) -> NativeSteps | None:
    """Return the native form of a model whose layers read as they did in a step; None where its structure is another.

    Structure is not everything (a residual may be scaled): the caller compares what it computes with the model.
    """
    inner: Any = model.base_model
    head: Any = model.get_output_embeddings()
    if {name for name, _ in inner.named_children()} != MODEL_PARTS or type(head) is not nn.Linear:
        return None
    layers: list[Any] = list(inner.layers)
    found = [layer_weights(layer) for layer in layers]
    weights = [layer for layer in found if layer is not None]
    norms = [module for module in inner.modules() if type(module).__name__.endswith("RMSNorm")]
    epsilons = {norm_eps(norm) for norm in norms}
    eps = epsilons.pop()
    if len(weights) < len(layers) or head.bias is not None or epsilons or eps is None:
        return None
    ways = [readings[index] for index in range(len(layers))]
    if any(way.softcap or way.scale != ways[0].scale for way in ways):
        return None
    config: Any = model.config.get_text_config()
    decoder = native_decoder(
        DecoderWeights(
            inner.embed_tokens.weight,
            inner.norm.weight,
            head.weight,
            weights,
            config.num_attention_heads,
            getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            eps,
            ways[0].scale,
            [way.window or 0 for way in ways],
        ),
        pages,
    )
    return None if decoder is None else NativeSteps(decoder, inner.rotary_emb, model.dtype)


def layer_weights(layer: nn.Module) -> DecoderLayer | None:
    """Return the weights of a layer that is made of the usual parts and no others."""
    parts: dict[str, Any] = dict(layer.named_children())
    if set(parts) != LAYER_PARTS:
        return None
    attention, mlp = parts["self_attn"], parts["mlp"]
    inner: dict[str, Any] = dict(attention.named_children())
    mlp_parts: dict[str, Any] = dict(mlp.named_children())
    norms = [inner.get(name) for name in HEAD_NORMS]
    q, k, v, o, gate, up, down = products = [
        without_adapters(part) for part in (*map(inner.get, PROJECTIONS), *map(mlp_parts.get, MLP_PROJECTIONS))
    ]
    if set(inner) - set(HEAD_NORMS) != set(PROJECTIONS) or mlp_activation(mlp) != "silu":
        return None
    if any(type(some) is not nn.Linear or is_watched(some) or not is_plain_weight(some.weight) for some in products):
        return None
    if any(some.bias is not None for some in (gate, up, down)):
        return None
    return DecoderLayer(
        norm1=parts["input_layernorm"].weight,
        q=q.weight,
        k=k.weight,
        v=v.weight,
        q_bias=q.bias,
        k_bias=k.bias,
        v_bias=v.bias,
        q_norm=None if norms[0] is None else norms[0].weight,
        k_norm=None if norms[1] is None else norms[1].weight,
        o=o.weight,
        o_bias=o.bias,
        norm2=parts["post_attention_layernorm"].weight,
        gate=gate.weight,
        up=up.weight,
        down=down.weight,
    )


def without_adapters(module: Any) -> Any:
    """Return the layer under adapters that a request may ask for; the native form is for requests without."""
    return getattr(module, "base_layer", module)
