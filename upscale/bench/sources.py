"""`upscale bench --sources`: how fast each kind of source writes rows."""

from __future__ import annotations

import json

import torch

from upscale.bench.machine import machine, seconds, summary
from upscale.config import ModelConfig
from upscale.config import files as config_files
from upscale.randomness.streams import Stream
from upscale.sources import KINDS, Source, SourceSettings

LANES, ROWS = 8, 16


def run(width: int, repeats: int, device: torch.device) -> dict:
    """Rows a second of every kind of source, printed line by line; the figures as they go into JSON."""
    measured: list[dict] = []
    result = {"machine": machine(device), "width": width, "lanes": LANES, "rows": ROWS, "sources": measured}
    print(f"{'source':18}{'rows/s':>10}{'lowest':>10}{'highest':>10}   on {device.type}, {LANES} lanes of {ROWS} rows")
    for kind, keys in ((kind, keys) for kind, settings in KINDS.items() for keys in settings.measured.items()):
        name, settings = f"{kind} {keys[0]}".strip(), {"kind": kind, **keys[1]}
        rate = rows_per_second(settings, width, repeats, device)
        measured.append({"name": name, "settings": settings, "rows_per_second": rate})
        print(f"{name:18}{rate['median']:10.0f}{rate['lowest']:10.0f}{rate['highest']:10.0f}", flush=True)
    return result


def rows_per_second(settings: dict, width: int, repeats: int, device: torch.device) -> dict[str, float]:
    """Speed of one entry of `data.sources` at a model's width: LANES lanes of ROWS rows a call."""
    entry, model = resolved(settings, width)
    source = entry.build(model.vocabulary)
    conditions, seeds = inputs(source, model, device)
    rounds = iter(range(1 << 30))
    taken = seconds(
        {"write": lambda: source.write(Stream(0, range(LANES), [next(rounds)] * LANES, device), conditions, seeds)},
        repeats,
        device,
    )["write"]
    return summary([LANES * ROWS / each for each in taken])


def resolved(settings: dict, width: int) -> tuple[SourceSettings, ModelConfig]:
    """One entry of `data.sources`, and the model of that width, without `auto`."""
    config = config_files.load(
        None, [f"model.width={width}", "model.depth=1", "model.heads=1", f"data.sources=[{json.dumps(settings)}]"]
    ).resolved()
    return config.data.sources[0], config.model


def inputs(source: Source, model: ModelConfig, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Random conditions and seeds for LANES lanes of ROWS rows."""
    length = model.context + 1
    stream = Stream(0, range(LANES), [0] * LANES, device)
    noise = stream.integers(1000, model.vocabulary, ROWS, length + source.seed_tokens).to(torch.uint8)
    return noise[..., :length], noise[..., length:]
