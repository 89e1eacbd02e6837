"""The quantizers of an export: each turns a plain model folder into one with weights in few bits."""
