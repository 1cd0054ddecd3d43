"""Measures ways to read random windows of a prepared corpus, against what the fastest shipped config needs.

Compared, on the same windows: one `pread` each from the tar shards as they are (what `Windows` does), the shards mapped
into memory, the split unpacked into one flat file and mapped, and webdataset's random access, which fetches the whole
64 KiB sample around a window. That last one is the package `wids`, which webdataset has had up to version 0.2.111 and
not since; without it a member-by-member read through the same offsets stands for it. The need is derived, not measured:
instances a second of width 384 with all blocks awake, if an H200 ran it at its data sheet's peak, times 20.

    python tests/benchmarks/reading.py [--megabytes 200] [--instances 200000] [--repeats 5] [--to FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks.generator import machine, summary
from upscale.config import files as config_files
from upscale.corpora.shards.index import BLOCK
from upscale.corpora.shards.reading import Corpus, Windows
from upscale.corpora.shards.writing import write_corpus
from upscale.corpora.work.spooling import Spool
from upscale.machine.gpus import DEVICES
from upscale.model.costs import flops_per_token

BATCH, FACTOR = 500, 20
FAST = ("shards", "unpacked")
ABOUT = {"corpus": "wp", "options": {}, "licence": "random bytes", "provenance": {"input": "random bytes"}}


def needed() -> dict[str, float]:
    """The arithmetic of the need."""
    model = config_files.load("configs/w384.yaml", []).resolved().model
    flops = flops_per_token(model, model.depth) * model.context
    peak = DEVICES["h200"].peak_flops
    return {
        "config": "w384",
        "flops_per_instance": flops,
        "h200_flops_per_second": peak,
        "instances_per_second_at_peak": peak / flops,
        "factor": FACTOR,
        "instances_per_second_needed": FACTOR * peak / flops,
    }


def prepare(folder: Path, megabytes: int) -> Path:
    """A corpus of random bytes, nine tenths of them for training."""
    file, size = folder / "text", megabytes * 10**6
    generator = np.random.default_rng(0)
    with open(file, "wb") as out:
        for start in range(0, size, 10**7):
            out.write(generator.bytes(min(10**7, size - start)))
    sizes = {"train": size * 9 // 10, "validation": size // 20, "test": size - size * 9 // 10 - size // 20}
    (folder / "corpus").mkdir()
    write_corpus(Spool(file, array("q", [0]), array("q", [size])), sizes, folder / "corpus", about=ABOUT)
    file.unlink()
    return folder / "corpus"


def readers(corpus: Path, context: int) -> dict[str, Callable[[torch.Tensor], np.ndarray]]:
    """Functions from instances (n,) to rows (n, context + 1) that give the same rows."""
    windows = Windows.open([corpus], context=context, seed=0, hashes=False)
    split = Corpus.open(corpus, splits=["train"], hashes=False).splits["train"]
    piece_bytes = split.description.piece_bytes
    flat_file = corpus.parent / "flat"
    with open(flat_file, "wb") as out:
        out.write(split.text())
    flat = memoryview(np.memmap(flat_file, np.uint8, "r"))

    def unpacked(instances: torch.Tensor) -> np.ndarray:
        starts = windows.places(instances)[1].tolist()
        rows = np.empty((len(instances), context + 1), np.uint8)
        parts = [flat[start : start + context + 1] for start in starts]
        rows[:] = np.frombuffer(b"".join(parts), np.uint8).reshape(len(rows), -1)
        return rows

    maps = [memoryview(np.memmap(corpus / shard.file, np.uint8, "r")) for shard in split.description.splits["train"]]

    def mapped(instances: torch.Tensor) -> np.ndarray:
        starts = windows.places(instances)[1].numpy()
        places = zip(*(column.tolist() for column in (starts, *split._place(starts))), strict=True)
        parts = [
            maps[shard][place : place + context + 1] if left > context else split.read(start, context + 1)
            for start, shard, place, left in places
        ]
        return np.frombuffer(b"".join(parts), np.uint8).reshape(len(instances), -1)

    sample = _wids(corpus, split) or _members(corpus, split)

    def by_sample(instances: torch.Tensor) -> np.ndarray:
        rows = np.empty((len(instances), context + 1), np.uint8)
        for row, start in zip(rows, windows.places(instances)[1].tolist(), strict=True):
            piece, offset = divmod(start, piece_bytes)
            content = sample(piece)[offset : offset + context + 1]
            if len(content) <= context:
                content += sample(piece + 1)[: context + 1 - len(content)]
            row[:] = np.frombuffer(content, np.uint8)
        return rows

    return {
        "shards read": lambda instances: windows.rows(instances).numpy(),
        "shards mapped": mapped,
        "unpacked and mapped": unpacked,
        sample.__doc__: by_sample,
    }


def _wids(corpus: Path, split) -> Callable[[int], bytes] | None:
    try:
        import wids
    except ImportError:
        return None
    pieces = split.description.shard_pieces
    total = -(-len(split) // split.description.piece_bytes)
    shards = [
        {"url": str(corpus / shard.file), "nsamples": min(pieces, total - number * pieces)}
        for number, shard in enumerate(split.description.splits["train"])
    ]
    with contextlib.redirect_stderr(io.StringIO()):
        dataset = wids.ShardListDataset(shards, localname=lambda url: url, transformations=[], lru_size=100, keep=True)

    def sample(number: int) -> bytes:
        """webdataset's random access (wids)"""
        return dataset[number][".bin"].getvalue()

    return sample


def _members(corpus: Path, split) -> Callable[[int], bytes]:
    description = split.description
    files = [os.open(corpus / shard.file, os.O_RDONLY) for shard in description.splits["train"]]

    def sample(number: int) -> bytes:
        """member by member, in place of wids"""
        shard, piece = divmod(number, description.shard_pieces)
        size = min(description.piece_bytes, len(split) - number * description.piece_bytes)
        return os.pread(files[shard], size, piece * (description.piece_bytes + BLOCK) + BLOCK)

    return sample


def measure(megabytes: int, instances: int, repeats: int) -> dict[str, object]:
    """Windows a second of each way, in turns, files in the page cache as in a run's second minute."""
    need = needed()
    with tempfile.TemporaryDirectory() as folder:
        corpus = prepare(Path(folder), megabytes)
        started = time.perf_counter()
        Windows.open([corpus], context=512, seed=0)
        opening = time.perf_counter() - started
        ways = readers(corpus, 512)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(repeats + 1):
            expected = None
            for name, read in ways.items():
                # the slow way reads fewer, so that all can be repeated
                count = instances if name.startswith(FAST) else instances // 20
                rows, started = None, time.perf_counter()
                for start in range(0, count, BATCH):
                    rows = read(torch.arange(start, start + BATCH) + repeat * instances)
                if repeat:
                    rates[name].append(count / (time.perf_counter() - started))
                first = read(torch.arange(BATCH))
                expected = first if expected is None else expected
                assert np.array_equal(first, expected) and rows is not None
    found = {name: summary(values) for name, values in rates.items()}
    return {
        "machine": machine(torch.device("cpu")),
        "megabytes": megabytes,
        "context": 512,
        "batch": BATCH,
        "needed": need,
        "opening_with_hashes_seconds": opening,
        "instances_per_second": found,
        "read_over_mapped": statistics.median(
            read / mapped for read, mapped in zip(rates["shards read"], rates["shards mapped"], strict=True)
        ),
        "times_the_need": {
            name: values["median"] / need["instances_per_second_needed"] for name, values in found.items()
        },
    }


def table(result: dict) -> str:
    """The result as it is printed."""
    need = result["needed"]
    lines = [
        f"{need['config']}: {need['flops_per_instance']:.4g} FLOP an instance, "
        f"H200 {need['h200_flops_per_second']:.4g} FLOP/s: "
        f"{need['instances_per_second_at_peak']:,.0f} instances/s at peak, times {need['factor']}: "
        f"{need['instances_per_second_needed']:,.0f} needed",
        f"{result['megabytes']} MB opened with every hash checked in {result['opening_with_hashes_seconds']:.2f} s",
        f"{'windows a second':40}{'median':>12}{'lowest':>12}{'highest':>12}   of the need",
    ]
    for name, values in result["instances_per_second"].items():
        numbers = "".join(f"{values[key]:12,.0f}" for key in ("median", "lowest", "highest"))
        lines.append(f"{name:40}{numbers}{result['times_the_need'][name]:11.2f} x")
    lines.append(f"reading over mapping, median of turns: {result['read_over_mapped']:.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--instances", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--to", type=Path, default=Path("docs/benchmarks/reading_cpu.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(given.megabytes, given.instances, given.repeats)
    print(table(result))
    given.to.parent.mkdir(parents=True, exist_ok=True)
    given.to.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
