"""Blocks, of which a model is a stack: one file each, with its module, its parameters' roles and its costs."""

from __future__ import annotations

import sys

from upscale.model.blocks.base import Block, Parameter
from upscale.settings import classes

KINDS: dict[str, type[Block]] = classes(sys.modules[__name__], Block)
"""The class of every block, by the name that `model.block` gives it."""

__all__ = ["KINDS", "Block", "Parameter"]
