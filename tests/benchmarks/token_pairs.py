"""The tasks of bits in other tokens than "0" and "1": how much of a figure is luck with two tokens?

    python -m tests.benchmarks.token_pairs runs/quickstart [RUN ...] [--pairs 30] [--slices 24] [--to FILE.json]

A model that was trained on rows with symbols from the whole vocabulary has no reason to know "0" and "1" better than
others, so the mean over random pairs says what it has learnt, and their spread what one pair may say by chance.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path

import numpy as np
import torch

import upscale
from upscale.evaluation.tasks.bits import BITS, BITSFLIP, BITSREP
from upscale.evaluation.tasks.generated import GeneratedTask
from upscale.model.transformer import Transformer

WRITTEN = (ord("0"), ord("1"))


def slices(task: GeneratedTask, count: int, length: int) -> np.ndarray:
    """(count, length) bytes of the task, one slice after the other."""
    return np.frombuffer(task.generate(count * length), np.uint8)[: count * length].reshape(count, length)


def in_tokens(data: np.ndarray, pair: tuple[int, int]) -> np.ndarray:
    """The same with "0" and "1" as the two tokens of the pair."""
    tokens = np.arange(256, dtype=np.uint8)
    tokens[list(WRITTEN)] = pair
    return tokens[data]


@torch.no_grad()
def bits_per_character(model: Transformer, data: np.ndarray) -> float:
    """Mean over all tokens but the first of each slice."""
    tokens = torch.from_numpy(data.astype(np.int64))
    logits = model(tokens[:, :-1]).float()
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())) / math.log(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--slices", type=int, default=24)
    parser.add_argument("--to", type=Path)
    options = parser.parse_args()
    found = []
    for run in options.runs:
        model = upscale.load(run)
        for task in (BITS, BITSFLIP, BITSREP):
            data = slices(task, options.slices, model.config.context + 1)
            random = np.random.default_rng(0)
            pairs = [tuple(random.choice(256, 2, replace=False)) for _ in range(options.pairs)]
            others = [bits_per_character(model, in_tokens(data, pair)) for pair in pairs]
            record = {
                "run": run.name,
                "task": task.name,
                "as_written": bits_per_character(model, data),
                "mean": statistics.mean(others),
                "standard_deviation": statistics.stdev(others),
                "least": min(others),
                "most": max(others),
            }
            found.append(record)
            print(*(f"{value:.2f}" if isinstance(value, float) else f"{value:<12}" for value in record.values()))
    if options.to:
        options.to.write_text(json.dumps({"pairs": options.pairs, "slices": options.slices, "runs": found}, indent=1))


if __name__ == "__main__":
    main()
