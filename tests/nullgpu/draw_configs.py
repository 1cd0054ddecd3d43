"""Draws rows as shipped configs do, so that Triton compiles its kernels for the values of every launch they make.

python draw_configs.py CONFIG ...        prints one line: how many kernels of which name were launched
"""

from __future__ import annotations

import collections
import sys

import torch
from triton.runtime import jit

from upscale import schedule
from upscale.config import files as config_files
from upscale.data import lanes

SEEDS = (0, 1, 16, 2**31, 2**32, 2**32 + 1, 2**64 - 1)


def main(paths: list[str]) -> None:
    launched: collections.Counter[str] = collections.Counter()
    real = jit.JITFunction.run

    def run(kernel, *arguments, **keywords):
        launched[kernel.__name__] += 1
        # Triton's default differs between versions, and rows with it.
        assert keywords["enable_fp_fusion"] is False, kernel.__name__
        return real(kernel, *arguments, **keywords)

    jit.JITFunction.run = run
    for path in paths:
        for seed in SEEDS:
            config = config_files.load(path, [f"run.seed={seed}"]).resolved()
            total = config.data.lanes
            first = schedule.batch_size(0, config.schedule, total)
            full = schedule.full_batch_size(config.schedule, total)
            # Batches and worlds differ in numbers of rows and lanes, seeds in the keys only.
            for ranks in (1, 8) if seed == SEEDS[0] else (8,):
                rows = lanes.from_config(config, lanes.owned_lanes(total, 0, min(ranks, total)), "cuda")
                for batch in (first, full) if seed == SEEDS[0] else (first,):
                    rows.draw(batch // total)
        print(path, dict(launched), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
