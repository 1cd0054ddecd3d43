"""Every component that the package finds is in the table that describes its kind."""

from __future__ import annotations

import re

import pytest

from tests.docs import markdown
from upscale import optim, sources
from upscale.corpora.recipes import RECIPES
from upscale.evaluation.tasks import TASKS
from upscale.model import blocks

TABLES = {
    "docs/sources.md": {*sources.KINDS},
    "docs/measuring.md": {*TASKS},
    "docs/corpora_and_finetuning.md": {*RECIPES},
    "docs/training.md": {*blocks.KINDS, *optim.KINDS},
}


@pytest.mark.parametrize("document", TABLES)
def test_every_component_is_in_a_table(document):
    rows = [line for _, line in markdown.prose(document) if line.startswith("|")]
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert listed >= TABLES[document]
