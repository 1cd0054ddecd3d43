"""One config at other widths: what is compared with `mup`, and what the coordinate check trains."""

from __future__ import annotations

from collections.abc import Sequence

from upscale.config import Config, problems_between_sections
from upscale.errors import UserError

CONTEXT, DEPTH = 32, 3
"""Of what the coordinate check trains, at most: positions, and blocks, the last of them progressive."""
FEWEST = 3


def at_width(config: Config, width: int, head_size: int | None = None) -> Config:
    """A resolved config at another width, with heads of this size (None: the config's) where that divides the width,
    else one head. Without `optimizer.layer_decay` and `optimizer.freeze`, which are no part of muP."""
    size = head_size or config.model.width // config.model.heads
    return config.with_values(
        model={"width": width, "heads": width // size if width % size == 0 else 1},
        optimizer={"layer_decay": 1.0, "freeze": []},
    )


def small(config: Config, widths: Sequence[int]) -> list[Config]:
    """The configs that the coordinate check trains: at each width a model of a few blocks, the last one progressive
    where the config has such blocks, of a short context, in float32, without dropout. Heads are of the config's size,
    or of the narrowest model's width where that is less.

    Raises UserError for fewer than three widths, and for one that such heads do not divide or the block cannot have.
    """
    widths, model = sorted(set(widths)), config.model
    given = f"--widths {','.join(map(str, widths))}"
    if len(widths) < FEWEST or widths[0] < 1:
        raise UserError(f"{given}: give at least {FEWEST} above 0, for the slope of a line through them")
    size = min(model.width // model.heads, widths[0])
    if any(width % size for width in widths):
        raise UserError(f"{given}: must be multiples of a head's size, which is {size} here")
    depth = min(model.depth, DEPTH)
    plain = depth if model.plain_blocks >= model.depth else min(model.plain_blocks, depth - 1)
    shape = {"depth": depth, "plain_blocks": plain, "context": min(model.context, CONTEXT)}
    made = [
        at_width(config, width, size).with_values(
            model={**shape, "dropout": 0.0, "checkpointing": "none"},
            engine={"precision": "fp32"},
        )
        for width in widths
    ]
    problems = [problem for one in made for problem in problems_between_sections({"model": one.model})]
    if problems:
        raise UserError(f"{given}: {problems[0][0]}: {problems[0][1]}")
    return made
