"""The `export` command: one plain model out of a base and its adapters, and the formats that follow from it."""

from .command import export_model


__all__ = ["export_model"]
