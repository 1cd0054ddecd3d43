"""The generator's kernel on a GPU: its tokens against another implementation's, and its rows a second at every width.

python -m upscale.bench.kernel --to FILE [--widths 384 1024] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from upscale.bench.machine import machine, seconds, summary
from upscale.console import command
from upscale.errors import UserError
from upscale.files import write_atomically
from upscale.machine import accelerator
from upscale.randomness.streams import Stream
from upscale.sources.recurrent import GRUSource, LSTMSource

VOCABULARY, LENGTH, SEED_TOKENS, ROWS = 256, 513, 8, 16
WIDTHS = (384, 512, 640, 1024, 1536, 2048, 4096)
LANES = {"one GPU": 64, "one of eight GPUs": 8}
"""Of the shipped configs' 64."""
LEAST_EQUAL_ROWS = 0.95
"""Two orders of summing part where two tokens tie to the last bit of float64, and from there the row is another."""


def inputs(lanes: int, length: int, device: torch.device) -> tuple[Stream, torch.Tensor, torch.Tensor]:
    """A stream of so many lanes, and random conditions and seeds for ROWS rows of each."""
    stream = Stream(0, range(lanes), [0] * lanes, device)
    noise = stream.integers(1000, VOCABULARY, ROWS, length + SEED_TOKENS).to(torch.uint8)
    return stream, noise[..., :length], noise[..., length:]


def agreement(kind: type[LSTMSource] | type[GRUSource], hidden: int, length: int, device: torch.device) -> float:
    """The share of rows in which every token is that of PyTorch's operations on the CPU, both in float64."""
    kernel, eager = (kind(vocabulary=VOCABULARY, hidden=hidden, dtype=torch.float64, eager=on) for on in (False, True))
    written = kernel.write(*inputs(4, length, device)).cpu()
    return (written == eager.write(*inputs(4, length, torch.device("cpu")))).all(-1).float().mean().item()


def measure(
    widths: Sequence[int], hidden_sizes: Sequence[int], repeats: int, length: int, device: torch.device
) -> dict:
    """Agreement at some hidden sizes for both cells, and rows a second of the LSTM at each width."""
    equal = {
        f"{kind.__name__}, hidden {hidden}": agreement(kind, hidden, min(length, 160), device)
        for kind in (LSTMSource, GRUSource)
        for hidden in hidden_sizes
    }
    rates = []
    for width in widths:
        source = LSTMSource(vocabulary=VOCABULARY, hidden=round(width / 10))
        calls: dict[str, Callable[[], object]] = {
            name: partial(source.write, *inputs(lanes, length, device)) for name, lanes in LANES.items()
        }
        for name, times in seconds(calls, repeats, device).items():
            rate = summary([LANES[name] * ROWS / each for each in times])
            rates.append({"width": width, "lanes": LANES[name], "of": name, "rows_per_second": rate})
    method = LSTMSource(vocabulary=VOCABULARY, hidden=2).method(device)
    agree = all(share >= LEAST_EQUAL_ROWS for share in equal.values())
    return {"machine": machine(device), "method": method, "agree": agree, "equal_rows": equal, "rates": rates}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", nargs="+", type=int, default=WIDTHS, metavar="N")
    parser.add_argument("--hidden", nargs="+", type=int, default=(38, 102), metavar="N", help="where rows are compared")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument("--length", type=int, default=LENGTH, metavar="N", help=f"tokens of a row; default: {LENGTH}")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(arguments)
    if accelerator.device_type() != "cuda":
        raise UserError("the kernel runs on GPUs, and this machine has none")
    found = measure(options.widths, options.hidden, options.repeats, options.length, torch.device("cuda", 0))
    write_atomically(options.to, (json.dumps(found, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    command.run(main)
