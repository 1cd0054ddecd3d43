"""Recipes: how each corpus is made from what a user has, or from its public address.

A corpus is one file here; docs/extending.md tells how to add one.
"""

from __future__ import annotations

import sys

from upscale.corpora.recipes.base import Known, Recipe
from upscale.settings import components

PAPER_ORDER = ("wp", "linux", "german", "code")
"""The order in which `upscale prepare --help` lists the paper's corpora; others follow by name."""

_FOUND: dict[str, type[Recipe]] = components(sys.modules[__name__], Recipe)

RECIPES: dict[str, type[Recipe]] = {name: _FOUND[name] for name in (*PAPER_ORDER, *_FOUND)}
"""Every recipe by the name that `upscale prepare NAME` gives it."""

__all__ = ["RECIPES", "Known", "Recipe"]
