"""`upscale bench`: what this machine does in a second."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from upscale import command, config_files
from upscale.errors import UserError
from upscale.files import write_atomically
from upscale.randomness import Stream
from upscale.sources import build

LANES, ROWS = 8, 16
SOURCES = {
    "lstm": "kind: lstm",
    "gru": "kind: gru",
    "transformer": "kind: transformer",
    "utm": "kind: utm",
    "utm 10x": "kind: utm, memory: 100, steps: 1000, program_length: 1000",
    "utm 50x": "kind: utm, memory: 500, steps: 5000, program_length: 5000",
    "utm 250x": "kind: utm, memory: 2500, steps: 25000, program_length: 25000",
    "utm 50x, markov": "kind: utm, memory: 500, steps: 5000, program_length: 5000, sampler: markov",
    "nca": "kind: nca",
    "nca, all rules": "kind: nca, band: [0, 2]",
    "automaton": "kind: automaton",
    "pointwise": "kind: pointwise",
    "dyck": "kind: dyck",
    "uniform": "kind: uniform",
}


def main(arguments: list[str]) -> int:
    parser = command.parser("bench", "Measure speed on this machine and print a table.")
    parser.add_argument("--sources", action="store_true", required=True, help="rows a second of every kind of source")
    parser.add_argument("--width", type=int, default=1024, metavar="N", help="of the model they serve; default: 1024")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="timed calls a source; default: 3")
    parser.add_argument("--device", help="cpu or cuda; default: cuda where there is one")
    parser.add_argument("--to", type=Path, metavar="FILE", help="also write the figures as JSON")
    options = parser.parse_args(arguments)
    if options.repeats < 1 or options.width < 20:
        raise UserError(f"--repeats {options.repeats} --width {options.width}: must be at least 1 and 20")
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no CUDA device; use --device cpu")
    result = {"machine": machine(device), "width": options.width, "lanes": LANES, "rows": ROWS, "sources": []}
    print(f"{'source':18}{'rows/s':>10}{'lowest':>10}{'highest':>10}   on {device.type}, {LANES} lanes of {ROWS} rows")
    for name, settings in SOURCES.items():
        rate = rows_per_second(settings, options.width, options.repeats, device)
        result["sources"].append({"name": name, "settings": settings, "rows_per_second": rate})
        print(f"{name:18}{rate['median']:10.0f}{rate['lowest']:10.0f}{rate['highest']:10.0f}", flush=True)
    if options.to:
        options.to.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.to, (json.dumps(result, indent=2) + "\n").encode())
    return 0


def rows_per_second(settings: str, width: int, repeats: int, device: torch.device) -> dict[str, float]:
    """Speed of one entry of `data.sources` at a model's width: LANES lanes of ROWS rows a call."""
    config = config_files.load(
        None, [f"model.width={width}", "model.depth=1", "model.heads=1", f"data.sources=[{{{settings}}}]"]
    ).resolved()
    source = build(config.data.sources[0], config.model.vocabulary)
    length, vocabulary = config.model.context + 1, config.model.vocabulary
    noise = Stream(0, range(LANES), [0] * LANES, device).integers(1000, vocabulary, ROWS, length + source.seed_tokens)
    conditions, seeds = noise[..., :length].to(torch.uint8), noise[..., length:].to(torch.uint8)
    rounds = iter(range(1 << 30))
    taken = seconds(
        {"write": lambda: source.write(Stream(0, range(LANES), [next(rounds)] * LANES, device), conditions, seeds)},
        repeats,
        device,
    )["write"]
    return summary([LANES * ROWS / each for each in taken])


def seconds(calls: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each call, the calls in turns, after one turn that is not counted."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            if turn:
                taken[name].append(time.perf_counter() - start)
    return taken


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def machine(device: torch.device) -> dict[str, object]:
    """What the numbers depend on."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    described = {
        "device": device.type,
        "cpu": names[0] if names else platform.processor(),
        "cpus": len(names) or None,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch_threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described
