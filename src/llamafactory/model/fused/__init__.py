"""Faster forms of the parts of a loaded model, put onto its module instances; no class is touched or written again.

A part is replaced where its structure is one that a function of ops/ computes, and where that function gives the same
values and gradients as the part's own code on a small input. Names, weights, saving and merging stay as they are:
only the instance's `forward` is another. Each replacement looks at its module in every call and goes the module's own
way whenever that is something it does not cover (an adapter of another kind, dropout, hooks, a compiler at work).
"""

from .passes import fuse_modules, restore_modules


__all__ = ["fuse_modules", "restore_modules"]
