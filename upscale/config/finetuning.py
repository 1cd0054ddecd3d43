"""What a config says about corpora and about the weights a run begins with."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from upscale.settings import Positive, Section

Part = Literal["embeddings", "head", "attention", "ff", "norms", "gates"]
"""Parts of the model by what they do: every parameter is in exactly one (model/parametrization.py)."""


class CorpusConfig(Section):
    path: Annotated[str, Field(min_length=1)]
    """A folder that `upscale prepare` or `upscale generate` wrote."""
    weight: Positive = 1.0
    """Relative frequency of its windows among the corpora."""


def problems_of_fine_tuning(sections: dict) -> list[tuple[str, str]]:
    """Corpora that are missing or in vain, and parts of the model that are named twice or in vain."""
    data, optimizer, init = (sections.get(name) for name in ("data", "optimizer", "init"))
    found: list[tuple[str, str]] = []
    if data and data.kind == "corpus" and not data.corpora:
        found.append(("data.corpora", "is empty, but data.kind is corpus; give folders that `upscale prepare` wrote"))
    if data and data.kind == "synthetic" and data.corpora:
        found.append(("data.corpora", "is read with data.kind=corpus only; set that, or leave the corpora out"))
    for key, parts in (
        ("optimizer.freeze", optimizer.freeze if optimizer else []),
        ("init.reinitialize", init.reinitialize if init else []),
    ):
        if len(set(parts)) < len(parts):
            found.append((key, f"{parts} names a part twice"))
    if optimizer and set(optimizer.freeze) >= set(get_args(Part)) - {"gates"}:
        found.append(("optimizer.freeze", "freezes all the model; leave a part that can learn"))
    if init and init.reinitialize and init.from_ is None:
        found.append(("init.reinitialize", "without init.from every part is random already; leave it out"))
    return found
