"""Weights in few bits: which quantizer a model is loaded with, and what follows for merging and counting."""

from .choosing import Quantizer, choose_quantizer, is_quantized, plain_quantizer
from .packing import settle_packing
from .sizes import num_weights


__all__ = ["Quantizer", "choose_quantizer", "is_quantized", "num_weights", "plain_quantizer", "settle_packing"]
