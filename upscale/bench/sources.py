"""`upscale bench --sources`: how fast each kind of source writes rows."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

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
    result = {
        "machine": machine(device),
        "load_average_before": round(os.getloadavg()[0], 2),
        "width": width,
        "lanes": LANES,
        "rows": ROWS,
        "sources": measured,
    }
    heads = "".join(f"{head:>12}" for head in ("rows/s", "lowest", "highest", "per CPU s"))
    print(f"{'source':20}{heads}   on {device.type}, {LANES} lanes of {ROWS} rows")
    for kind, keys in entries():
        name, settings = f"{kind} {keys[0]}".strip(), {"kind": kind, **keys[1]}
        rates = rows_per_second(settings, width, repeats, device)
        measured.append({"name": name, "settings": settings, **rates})
        of_cpu = f"{rates['rows_per_cpu_second']['median']:12.0f}" if device.type == "cpu" else ""
        shown = "".join(f"{rates['rows_per_second'][which]:12.0f}" for which in ("median", "lowest", "highest"))
        print(f"{name:20}{shown}{of_cpu}", flush=True)
    return result


def entries() -> Iterator[tuple[str, tuple[str, dict]]]:
    """What is measured of every kind of source: the kind, and (what distinguishes it, keys)."""
    for kind, settings in KINDS.items():
        for keys in settings.measured.items():
            yield kind, keys


def rows_per_second(settings: dict, width: int, repeats: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Speed of one entry of `data.sources` at a model's width: LANES lanes of ROWS rows a call.

    `rows_per_second` is by the clock; on a CPU, `rows_per_cpu_second` by what all threads of this process used, which
    other jobs change little.
    """
    entry, model = resolved(settings, width)
    source = entry.build(model.vocabulary)
    conditions, seeds = inputs(source, model, device)
    used: list[float] = []

    def write() -> None:
        before = time.process_time()
        source.write(Stream(0, range(LANES), [len(used)] * LANES, device), conditions, seeds)
        used.append(time.process_time() - before)

    taken = seconds({"write": write}, repeats, device)["write"]
    found = {"rows_per_second": taken}
    if device.type == "cpu":
        found["rows_per_cpu_second"] = used[1:]
    return {name: summary([LANES * ROWS / each for each in those]) for name, those in found.items()}


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
