"""Optimizers that transformers does not bring, each written from its paper; `making.make_optimizer` picks the row."""
