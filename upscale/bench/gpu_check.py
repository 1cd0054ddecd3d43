"""What to run first on a machine with GPUs: every check and figure that needs one, as one JSON, in ten minutes.

    launch/gpu_check.sh [--to FILE] [--minutes 10] [--only NAME ...] [--small]

Sections run one after another, each in a process of its own with a time limit; what there is no time left for is not
run, and named. Exit code 0 when every section that could run here passed, else 1.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from upscale.bench.machine import machine
from upscale.config import Config
from upscale.config import files as config_files
from upscale.console import command
from upscale.errors import UserError
from upscale.files import write_atomically
from upscale.machine import accelerator
from upscale.planning import memory

WIDTHS = (384, 1024, 2048)
BENCH = (sys.executable, "-m", "upscale.cli", "bench")
SMALL = ("model.depth=2", "model.context=64", "model.plain_blocks=1", "model.group_blocks=1", "model.compile=false")
LAST_LINES = 30
MEMORY_TOLERANCE = 0.10
SECTIONS = ("kernel", "tests", "step", "ranks")


@dataclasses.dataclass(frozen=True)
class Section:
    """One program of the check."""

    name: str
    command: tuple[str, ...]
    """Without the file that it writes its figures to."""
    limit_seconds: float
    writes: bool = True
    """Whether it takes `--to FILE`."""
    config: Config | None = None
    """What a bench trains."""
    at_size: bool = True
    """False: a model so small that its memory is not what the plan counts."""
    impossible: str | None = None
    """Why it cannot run here."""


def sections(only: list[str], small: bool) -> Iterator[Section]:
    """What runs, in the order of what it takes and of what one wants to know first."""
    gpus, total = torch.cuda.device_count(), torch.cuda.get_device_properties(0).total_memory
    if "kernel" in only:
        reduced = ("--widths", "384", "--hidden", "38", "--length", "16", "--repeats", "1") if small else ()
        yield Section("kernel", (sys.executable, "-m", "upscale.bench.kernel", *reduced), 120)
    if "tests" in only:
        yield Section("tests", (sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"), 180, writes=False)
    for width in (WIDTHS[:1] if small else WIDTHS) if "step" in only else ():
        yield step(f"step w{width}", width, 1, total, small)
    if "ranks" in only:
        for name in ("deepspeed", "fsdp"):
            impossible = None if gpus > 1 else "needs two GPUs"
            section = step(f"two ranks, {name}", 384, 2, total, small, f"engine.name={name}")
            yield dataclasses.replace(section, impossible=impossible)


def step(name: str, width: int, ranks: int, memory_bytes: float, small: bool, *settings: str) -> Section:
    """A benchmark of a shipped config with two microbatches a rank of what fits by the plan."""
    path, overrides = f"configs/w{width}.yaml", ["engine.precision=bf16", *(SMALL if small else ()), *settings]
    config = config_files.load(path, overrides).resolved()
    rows = min(8 if small else 512, memory.largest_micro_batch(config, ranks, memory_bytes))
    if not rows:
        return Section(
            name, (), 0, impossible=f"w {width} does not fit {ranks} GPUs with {memory_bytes / 2**30:.0f} GiB"
        )
    lanes = config.data.lanes
    batch = lanes * math.ceil(2 * rows * ranks / lanes)
    overrides += [f"engine.micro_batch={rows}", f"schedule.batch.start={batch}", f"schedule.batch.end={batch}"]
    steps = ("--steps", "1" if small else "5", "--warm-up", "1" if small else "2", "--ranks", str(ranks))
    config = config_files.load(path, overrides).resolved()
    return Section(name, (*BENCH, "--config", path, *steps, *overrides), 240, config=config, at_size=not small)


def run(section: Section, folder: Path, seconds_left: float) -> dict:
    """What became of it: `status` (passed, failed, timed out, not run, no time), why, and its figures."""
    if section.impossible:
        return {"status": "not run", "why": section.impossible}
    if seconds_left <= 0:
        return {"status": "no time", "why": "--minutes were over before it could begin"}
    to = folder / f"{section.name}.json"
    order = [*section.command, *(["--to", str(to)] if section.writes else [])]
    begin = time.monotonic()
    code, output = limited(order, min(section.limit_seconds, seconds_left))
    found = {"command": " ".join(order), "seconds": round(time.monotonic() - begin, 1)}
    if code is None:
        return {"status": "timed out", **found, "output": output}
    if code or (section.writes and not to.is_file()):
        return {"status": "failed", **found, "why": f"exit code {code}", "output": output}
    if not section.writes:
        return {"status": "passed", **found, "output": output[-3:]}
    result = json.loads(to.read_text(encoding="utf-8"))
    why = problem(section, result)
    return {"status": "failed" if why else "passed", **({"why": why} if why else {}), **found, "result": result}


def limited(order: list[str], seconds: float) -> tuple[int | None, list[str]]:
    """The exit code of a program, None when it was ended for its time, and the last lines of its output."""
    process = subprocess.Popen(
        order, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=seconds)
        code = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        code = None
    return code, output.splitlines()[-LAST_LINES:]


def problem(section: Section, result: dict) -> str | None:
    """What is wrong with a program's figures; adds a step's planned memory to them."""
    if section.config is None:  # the kernel's
        return None if result["agree"] else f"the kernel writes other rows than the CPU: {result['equal_rows']}"
    ranks, rows = result["world_size"], result["micro_batch"]
    planned = memory.peak_bytes(section.config, ranks, rows, math.ceil(result["rows_per_rank"] / rows))
    share = result["peak_memory_gib"] * 2**30 / planned
    result["planned_memory_gib"], result["peak_memory_of_plan"] = planned / 2**30, share
    if section.at_size and abs(share - 1) > MEMORY_TOLERANCE:
        return f"peak memory is {share:.2f} of the plan's"
    return None


def figures(found: dict[str, dict]) -> dict:
    """The figures that one looks at first, by name."""
    short: dict = {}
    for name, section in found.items():
        result = section.get("result")
        if name == "kernel" and result:
            for rate in result["rates"]:
                median = rate["rows_per_second"]["median"]
                short[f"generator w{rate['width']}, {rate['lanes']} lanes, rows/s"] = round(median)
        elif result:
            short[f"{name}, tokens/s"] = round(result["tokens_per_second"]["median"])
            short[f"{name}, MFU"] = result["model_flops_utilization"]
            short[f"{name}, peak memory of plan"] = round(result["peak_memory_of_plan"], 3)
    return short


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser("gpu_check", "Check this machine's GPUs with this project, and measure what is owed.")
    parser.add_argument("--to", type=Path, default=Path("gpu_check.json"), metavar="FILE")
    parser.add_argument("--minutes", type=float, default=10, metavar="N", help="for all sections; default: 10")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="NAME")
    parser.add_argument("--small", action="store_true", help="few blocks and short rows: whether it runs, no figures")
    options = parser.parse_args(arguments)
    if accelerator.device_type() != "cuda":
        raise UserError("this machine has no GPU to check")
    begin, found = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as folder:
        for section in sections(options.only, options.small):
            left = 60 * options.minutes - (time.monotonic() - begin)
            found[section.name] = run(section, Path(folder), left)
            why = f": {found[section.name]['why']}" if "why" in found[section.name] else ""
            print(f"{section.name}: {found[section.name]['status']}{why}", file=sys.stderr, flush=True)
    result = {
        "kind": "gpu_check",
        "date": datetime.date.today().isoformat(),
        "small": options.small,
        "machine": machine(torch.device("cuda", 0)),
        "gpus": torch.cuda.device_count(),
        "driver": accelerator.driver_version(),
        "versions": config_files.versions(),
        "seconds": round(time.monotonic() - begin, 1),
        "figures": figures(found),
        "sections": found,
    }
    write_atomically(options.to, (json.dumps(result, indent=1) + "\n").encode())
    for name, value in result["figures"].items():
        print(f"{name}: {value}")
    print(f"all figures are in {options.to}")
    return 0 if all(one["status"] in ("passed", "not run") for one in found.values()) else 1


if __name__ == "__main__":
    command.run(main)
