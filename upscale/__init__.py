"""Upscale: pre-train byte-level transformers on synthetic data that every rank makes on its own device.

The functions here are for anyone's own training loop (docs/own_loop.md). Importing this package imports nothing else:
each function is imported when it is first asked for.
"""

import importlib
from typing import TYPE_CHECKING

__all__ = ["evaluate", "generate", "load", "perplexity", "rows"]

if TYPE_CHECKING:
    from upscale.checkpoint.export import load
    from upscale.data.generation import generate
    from upscale.data.stream import rows
    from upscale.evaluation.own_model import evaluate, perplexity
else:
    _MODULES = {
        "evaluate": "upscale.evaluation.own_model",
        "generate": "upscale.data.generation",
        "load": "upscale.checkpoint.export",
        "perplexity": "upscale.evaluation.own_model",
        "rows": "upscale.data.stream",
    }

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_MODULES[name]), name)

    def __dir__():
        return sorted([*globals(), *__all__])
