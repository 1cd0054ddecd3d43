"""What a config says about corpora, and about the weights of another run that a run begins with."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from upscale.settings import Count, Positive, Section

TokenRows = Literal["carried", "matched", "mean", "sampled"]
Part = Literal["embeddings", "head", "attention", "ff", "norms", "gates"]
"""Parts of the model by what they do: every parameter is in exactly one (model/parametrization.py)."""


class CorpusConfig(Section):
    path: Annotated[str, Field(min_length=1)]
    """A folder that `upscale prepare` or `upscale generate` wrote."""
    weight: Positive = 1.0
    """Relative frequency of its windows among the corpora."""


class RowsConfig(Section):
    """How tensors with a row for each token, or for each position, begin where their part is not reinitialized."""

    embeddings: TokenRows = "carried"
    """Of the token embedding: carried: as they were; matched: those of ids that were known, and the mean row for
    others; mean: all the mean row; sampled: each one of the old rows, drawn with replacement. All but carried take a
    model of any vocabulary."""
    head: TokenRows = "carried"
    """The same of the head and its bias; sampled draws for each token the same old row as for the embedding."""
    positions: Literal["carried", "first"] = "carried"
    """Of the learned positions: carried: as many as there are; first: the first ones of a longer context."""


class InitConfig(Section):
    from_: Annotated[str | None, Field(alias="from", min_length=1)] = None
    """A run directory, or a file of `upscale export`, to take the weights from; null: random weights."""
    step: Count | Literal["newest"] = "newest"
    """Which of that run's checkpoints; a milestone is kept for ever."""
    reinitialize: list[Part] = []
    """Parts that start from random weights (of this run's seed) all the same."""
    rows: RowsConfig = RowsConfig()
    mix: dict[Part, Annotated[str, Field(min_length=1)]] = {}
    """Parts that are taken from other runs or files than `from`: part -> run directory (its newest checkpoint) or file,
    such as {ff: runs/cells}."""
    control: Literal["none", "shuffled", "gaussian"] = "none"
    """What is taken of each tensor: none: all of it; shuffled: its numbers in random order; gaussian: only their mean
    and standard deviation, with which new ones are drawn. The last two tell structure from scale."""


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
    if init and init.from_ is None:
        found += [
            (f"init.{key}", f"without init.from {message}; leave it out")
            for key, message in (
                ("reinitialize", "every part is random already"),
                ("rows", "there are no rows to begin with"),
                ("mix", "there is nothing to mix with"),
                ("control", "there are no weights to take"),
            )
            if getattr(init, key) != InitConfig.model_fields[key].default
        ]
    elif init:
        found += _problems_of_parts(init)
    return found


def _problems_of_parts(init: InitConfig) -> list[tuple[str, str]]:
    """Parts that are said to begin in two ways."""
    found = [
        (f"init.mix.{part}", f"{part} is in init.reinitialize too; leave one of them out")
        for part in init.mix
        if part in init.reinitialize
    ]
    fixed = {"embeddings": init.rows.embeddings, "head": init.rows.head}
    found += [
        (f"init.rows.{part}", f"{rule}, but {part} is in init.reinitialize; leave one of them out")
        for part, rule in fixed.items()
        if rule != "carried" and part in init.reinitialize
    ]
    if init.rows.positions != "carried" and "embeddings" in init.reinitialize:
        found.append(("init.rows.positions", "embeddings is in init.reinitialize; leave one of them out"))
    return found
