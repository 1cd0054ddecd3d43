"""What a run is told to change when a GPU's memory runs out, against the plan itself."""

import re

import pytest
import yaml

from upscale import schedule
from upscale.config import files as config_files
from upscale.planning import memory, out_of_memory

GIB = 2**30
CASES = {
    "rows": ("w1024", 8, 80, ["engine.micro_batch=256"], "engine.micro_batch="),
    "rows that the plan thought to fit": ("w1024", 8, 80, ["engine.micro_batch=auto"], "engine.micro_batch="),
    "activations of one row": (
        "w2048",
        8,
        20,
        ["engine.name=deepspeed", "engine.zero_stage=2", "engine.micro_batch=8"],
        "model.checkpointing=full",
    ),
    "states": (
        "w2048",
        8,
        12,
        ["engine.name=deepspeed", "engine.zero_stage=1", "engine.micro_batch=8"],
        "engine.name=fsdp",
    ),
    "states that more ranks would divide": ("w4096", 4, 40, ["engine.name=fsdp"], "Start at least"),
    "anything": ("w4096", 64, 1, [], "Nothing fits"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_advice_fits(name):
    """Applied as a user would, by overrides; and it asks for less than what ran out."""
    width, ranks, gib, overrides, expected = CASES[name]
    path, overrides = f"configs/{width}.yaml", [*overrides, "engine.precision=bf16"]
    config = config_files.load(path, overrides).resolved()
    rows = out_of_memory.rows_at_once(config, ranks, gib * GIB)
    assert rows <= schedule.full_batch_size(config.schedule, config.data.lanes)
    text = out_of_memory.advice(config, ranks, gib * GIB, rows)
    assert expected in text, text
    if text.startswith("Nothing"):
        return
    given = re.findall(r"[a-z]+\.[a-z_]+=\w+", text)
    changed = config_files.load(path, [*overrides, *given]).resolved()
    ranks = int((re.findall(r"at least (\d+) ranks", text) or [ranks])[0])
    fitting = memory.largest_micro_batch(changed, ranks, gib * GIB)
    assert fitting
    if changed.engine.micro_batch != "auto":
        assert 1 <= changed.engine.micro_batch <= fitting
        assert changed.engine.micro_batch < rows or len(given) > 1
    assert all(yaml.safe_load(setting.split("=")[1]) is not None for setting in given)
