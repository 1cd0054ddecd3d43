"""code: minified JavaScript."""

from __future__ import annotations

from typing import Literal

from upscale.corpora.recipes.base import Known, Recipe


class Code(Recipe):
    definition = "D3, minified JavaScript: d3.min.js"
    address = "https://cdn.jsdelivr.net/npm/d3@7.9.0/dist/d3.min.js"
    accepts = "d3.min.js or d3.v7.min.js, as it is or packed"
    licence = "ISC, Copyright Mike Bostock"
    total = 279_703
    train = 170_000
    validation = 40_000
    tolerance = 0.05  # releases of version 7
    known = (
        Known(  # every release has the same file name, so only the address says which it is
            r"https://.*/d3@7\.9\.0/.*",
            "sha256",
            "f2094bbf6141b359722c4fe454eb6c4b0f0e42cc10cc7af921fc158fceb86539",
            of_text=False,
        ),
    )

    kind: Literal["code"] = "code"
