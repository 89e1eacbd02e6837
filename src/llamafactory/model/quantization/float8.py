"""A frozen base in 8-bit floats below an adapter: half the memory of bfloat16, products at 8-bit speed on Hopper."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...extras.logging import get_logger
from ...ops.float8 import MULTIPLE, Float8Weight, float8_linear, from_float8, multiplies_float8, to_float8
from .packed import PackedLinear, pack_linears


if TYPE_CHECKING:
    from .choosing import QuantizerRequest

logger = get_logger(__name__)


class Float8Linear(PackedLinear):
    """A linear layer with a float8_e4m3 weight and one scale a row."""

    def __init__(self, plain: nn.Linear, *, in_float8: bool) -> None:
        rounded = to_float8(plain.weight.detach())
        super().__init__(plain, rounded.codes_OD, {"scale_O": rounded.scale_O})
        self.in_float8 = in_float8
        """Whether the products round their other side as well."""

    @property
    def is_unpacked_for_products(self) -> bool:
        """Whether products are in a wider format."""
        return not self.in_float8

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """Return the weight as numbers [out, in]."""
        return from_float8(self._rounded(), dtype)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name is torch's
        """Return input W^T + bias."""
        return float8_linear(input, self._rounded(), self.bias, in_float8=self.in_float8)

    def _rounded(self) -> Float8Weight:
        return Float8Weight(self.weight, self.get_buffer("scale_O"))


def pack_float8(model: PreTrainedModel, request: "QuantizerRequest") -> PreTrainedModel:
    """Pack all linear layers whose widths an 8-bit product can have."""
    in_float8 = multiplies_float8(request.device)
    if not in_float8:
        logger.info("This device has no 8-bit products: weights are unpacked for each product, which is slower.")

    def make(layer: nn.Linear) -> Float8Linear | None:
        is_fit = layer.in_features % MULTIPLE == layer.out_features % MULTIPLE == 0
        return Float8Linear(layer, in_float8=in_float8) if is_fit else None

    return pack_linears(model, make, "FP8", request.device)
