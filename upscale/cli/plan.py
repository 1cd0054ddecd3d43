"""`upscale plan`: what a config would take on a cluster, and what to change, before any GPU time is spent."""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path

from upscale.config import Config
from upscale.config import files as config_files
from upscale.console import command
from upscale.errors import UserError
from upscale.files import read_json_lines, write_json
from upscale.machine.gpus import DEVICES
from upscale.planning import memory, tables
from upscale.planning.communication import Cluster
from upscale.planning.estimate import Estimate, alternatives, estimate

ASSUMED_UTILIZATION = 0.40
SCALING_GPUS = (8, 64, 512)


def main(arguments: list[str]) -> int:
    parser = command.parser("plan", "Memory, time and GPU hours of a config on a cluster; needs no GPU.")
    command.add_config(parser)
    parser.add_argument("--nodes", type=_count, default=1, metavar="N")
    parser.add_argument("--gpus-per-node", type=_count, default=8, metavar="M")
    parser.add_argument("--device", choices=sorted(DEVICES), default="h200")
    parser.add_argument(
        "--network-gigabits", type=float, default=400, metavar="G", help="per GPU, one way, to other nodes (400)"
    )
    parser.add_argument(
        "--utilization",
        type=float,
        metavar="SHARE",
        help=f"of the sheet peak while computing ({ASSUMED_UTILIZATION}, an assumption: measure yours)",
    )
    parser.add_argument(
        "--measured", type=Path, metavar="FILE", help="what `upscale bench --to` wrote, or a run's metrics.jsonl"
    )
    parser.add_argument(
        "--scaling", action="store_true", help=f"strong and weak scaling on {SCALING_GPUS} GPUs instead"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_intermixed_args(arguments)
    if options.utilization is not None and options.measured is not None:
        raise UserError("--utilization and --measured were both given: the second says what the first would assume")
    if options.network_gigabits <= 0:
        raise UserError(f"--network-gigabits {options.network_gigabits} must be above 0")
    config = memory.in_bfloat16(config_files.load(options.config, options.overrides).resolved())
    utilization, source = _utilization(options)
    device, network = DEVICES[options.device], options.network_gigabits * 1e9 / 8

    if options.scaling:
        records, text = scaling(config, options.gpus_per_node, device, network, utilization)
    else:
        cluster = Cluster(options.nodes, options.gpus_per_node, device, network)
        records, text = plan(config, cluster, utilization)
    assumed = (
        f"{options.device}, {options.network_gigabits:g} Gb/s per GPU between nodes, matrix products at "
        f"{utilization:.0%} of {device.peak_flops / 1e12:.0f} TFLOP/s ({source})"
    )
    print(f"{config.run.name} on {assumed}\n\n{text}")
    if options.json:
        write_json(options.json, {"assumed": assumed, "estimates": records})
        print(f"\nfigures in {options.json}")
    return 0


def plan(config: Config, cluster: Cluster, utilization: float) -> tuple[list[dict], str]:
    """The config as written, then every other way to compute it."""
    if cluster.ranks > config.data.lanes:
        raise UserError(
            f"{cluster.ranks} GPUs for data.lanes = {config.data.lanes}, but a lane never spans ranks. Plan with at "
            f"most {config.data.lanes} GPUs, or with data.lanes={cluster.ranks}."
        )
    shard = config.engine.shard_ranks
    if config.engine.name == "fsdp" and shard != "auto" and cluster.ranks % shard:
        raise UserError(f"engine.shard_ranks = {shard} does not divide {cluster.ranks} GPUs; give a divisor, or auto")
    written = estimate(config, cluster, utilization)
    others = alternatives(config, cluster, utilization)
    text = "\n\n".join([tables.details(written), tables.comparison(others), tables.advice(written, others)])
    return [tables.record(one) for one in [written, *others]], text


def scaling(config: Config, gpus_per_node: int, device, network: float, utilization: float) -> tuple[list[dict], str]:
    """The fastest way on each of SCALING_GPUS: strong keeps the batch, weak keeps each GPU's rows as on the fewest."""
    found: list[tuple[str, int, Estimate]] = []
    for kind in ("strong", "weak"):
        for gpus in SCALING_GPUS:
            per_node = min(gpus, gpus_per_node)
            cluster = Cluster(math.ceil(gpus / per_node), per_node, device, network)
            factor = gpus // SCALING_GPUS[0] if kind == "weak" else 1
            found.append((kind, gpus, alternatives(_grown(config, factor, gpus), cluster, utilization)[0]))
    return [{"scaling": kind, **tables.record(one)} for kind, _, one in found], tables.scaling(found)


def _grown(config: Config, factor: int, gpus: int) -> Config:
    """The config with `factor` times the full batch, and at least one lane a GPU."""
    batch = config.schedule.batch.model_copy(update={"end": config.schedule.batch.end * factor})
    return config.with_values(schedule={"batch": batch}, data={"lanes": max(config.data.lanes, gpus)})


def _utilization(options: argparse.Namespace) -> tuple[float, str]:
    """The share of the peak to plan with, and where it comes from."""
    if options.measured is None:
        share = ASSUMED_UTILIZATION if options.utilization is None else options.utilization
        if not 0 < share <= 1:
            raise UserError(f"--utilization {share} must be above 0 and at most 1")
        return share, "assumed" if options.utilization is None else "given"
    path = options.measured
    try:
        records = list(read_json_lines(path)) if path.suffix == ".jsonl" else [json.loads(path.read_text())]
    except (OSError, ValueError) as error:
        raise UserError(f"--measured {path} cannot be read: {error}") from None
    # What `upscale bench` writes also has the passes' own utilisation, without what a plan adds by itself.
    found = [
        record.get("computing_flops_utilization") or record.get("model_flops_utilization")
        for record in records
        if isinstance(record, dict)
    ]
    measured = [share for share in found if share]
    if not measured:
        raise UserError(
            f"--measured {path} holds no model_flops_utilization. It is written by runs on a GPU whose peak is known; "
            "give --utilization instead."
        )
    return statistics.median(measured[len(measured) // 2 :]), f"measured, median of the later half of {path}"


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
