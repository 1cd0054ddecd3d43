"""Sources: random programs that write token rows.

A source is one file or folder here, with its settings and its code; docs/extending.md tells how to add one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from upscale.settings import components
from upscale.sources.base import Source, SourceSettings

if TYPE_CHECKING:
    from upscale.config import ModelConfig

KINDS: dict[str, type[SourceSettings]] = components(sys.modules[__name__], SourceSettings)
"""The settings class of every kind of source, by the name that `data.sources: [{kind: NAME}]` gives it."""

if TYPE_CHECKING:
    AnySource = SourceSettings
else:
    AnySource = Annotated[reduce(or_, dict.fromkeys(KINDS.values())), Field(discriminator="kind")]
"""The type of an entry of `data.sources`."""


def problems_of_sources(
    sources: Sequence[SourceSettings], model: ModelConfig | None, first_target: int
) -> list[tuple[str, str]]:
    """Impossible combinations as (key, message)."""
    found = []
    if not sum(source.weight for source in sources):
        found.append(("data.sources", "all weights are 0; give one of them a positive weight"))
    if first_target > 1 and (kinds := sorted({source.kind for source in sources if source.masked})):
        message = f"{first_target}, but {', '.join(kinds)} chooses its own targets: give 1, or leave that source out"
        found.append(("data.first_target", message))
    for index, source in enumerate(sources):
        found += [(f"data.sources[{index}].{key}", message) for key, message in source.problems(model)]
    return found


__all__ = ["KINDS", "AnySource", "Source", "SourceSettings", "problems_of_sources"]
