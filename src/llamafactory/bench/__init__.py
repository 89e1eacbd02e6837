"""The benchmark: this package against plain transformers, on the same work, each side in a process of its own."""
