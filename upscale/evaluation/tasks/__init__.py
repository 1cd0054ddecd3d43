"""Evaluation tasks: synthetic strings and real texts that a model is measured on.

A task, or a family of them, is one file here; docs/extending.md tells how to add one.
"""

from __future__ import annotations

import sys

from upscale.evaluation.tasks.base import CHARACTERS, HELD_OUT_SPLITS, Task
from upscale.evaluation.tasks.generated import GeneratedTask
from upscale.evaluation.tasks.text import TextTask
from upscale.settings import instances

PAPER_ORDER = (
    *("champ", "champ_decimal", "dyck", "ndfa", "aut", "toy", "toy2", "bits", "bitsflip", "bitsrep"),
    *("wp", "german", "code", "linux"),
)
"""The order in which the paper's tasks are measured and listed; others follow by name."""

_FOUND: dict[str, Task] = instances(sys.modules[__name__], Task)
_ORDERED = {name: _FOUND[name] for name in (*PAPER_ORDER, *_FOUND)}

GENERATED = {name: task for name, task in _ORDERED.items() if isinstance(task, GeneratedTask)}
"""The synthetic tasks by name."""
TEXTS = {name: task for name, task in _ORDERED.items() if isinstance(task, TextTask)}
"""The real texts by name."""
TASKS: dict[str, Task] = {**GENERATED, **TEXTS}
"""Every task by the name that `evaluation.tasks` gives it, in the order in which "all" measures them."""

__all__ = ["CHARACTERS", "GENERATED", "HELD_OUT_SPLITS", "TASKS", "TEXTS", "Task"]
