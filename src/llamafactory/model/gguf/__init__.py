"""GGUF files in and out: one file becomes an ordinary model folder, and a folder becomes one file."""

from .convert import CONVERTER_VERSION, convert_gguf
from .writer import open_source, write_gguf


__all__ = ["CONVERTER_VERSION", "convert_gguf", "open_source", "write_gguf"]
