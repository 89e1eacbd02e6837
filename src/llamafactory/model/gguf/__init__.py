"""GGUF files in: one file becomes an ordinary model folder that everything else can read."""

from .convert import CONVERTER_VERSION, convert_gguf


__all__ = ["CONVERTER_VERSION", "convert_gguf"]
