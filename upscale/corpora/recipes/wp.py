"""wp: English Wikipedia."""

from __future__ import annotations

from typing import Literal

from upscale.corpora.recipes.base import Known, Recipe

PACKED = r"(\.(zip|gz|xz|bz2|zst))?"


class Wikipedia(Recipe):
    definition = "English Wikipedia as XML, markup included: enwik8"
    address = "http://mattmahoney.net/dc/enwik8.zip"
    accepts = "enwik8 or enwik9 as it is or packed (zip, gz, xz, bz2, zst), or a MediaWiki XML dump"
    licence = "CC BY-SA 3.0 and GFDL; the authors are in each page's history"
    total = 100_000_000
    train = 90_000_000
    validation = 5_000_000
    known = (
        Known(r"enwik8" + PACKED, "md5", "a1fa5ffddb56f4953e226637dabbb36a", of_text=True),
        Known(r"enwik9" + PACKED, "md5", "e206c3450ac99950df65bf70ef61a12d", of_text=True),
    )

    kind: Literal["wp"] = "wp"
