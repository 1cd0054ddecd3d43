"""Measures the LSTM source against the straightforward loop, and what it gives at the shipped sizes.

The straightforward loop is what one writes first: torch.nn.LSTM called once a token on (rows, 1, input), softmax,
torch.multinomial. Both sides make a new program and 138 rows of 513 tokens with hidden 102, as width 1024 does in the
paper; they are timed in turns, so that whatever else the machine does meets both. With --device cuda, the fused kernel,
the eager form and the loop are measured at every shipped width.

    python tests/benchmarks/generator.py [--device cuda] [--threads 2] [--repeats 7] [--to FILE]
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch

from upscale.bench import machine, seconds, summary
from upscale.randomness.streams import Stream
from upscale.sources.recurrent import LSTMSource

VOCABULARY, LENGTH, SEED_TOKENS, TEMPERATURE = 256, 513, 8, 1e-4
HIDDEN_OF_WIDTH = {384: 38, 512: 51, 640: 64, 1024: 102, 1536: 154, 2048: 205, 4096: 410}


class StraightforwardSource:
    """A fresh torch.nn.LSTM a call, one call of it a token."""

    def __init__(self, hidden: int, device: torch.device) -> None:
        self.hidden, self.device = hidden, device

    @torch.no_grad()
    def write(self, conditions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(rows, length) int64 rows for conditions (rows, length) and seeds (rows, SEED_TOKENS)."""
        embedding = torch.nn.Embedding(VOCABULARY, self.hidden // 2, device=self.device)
        lstm = torch.nn.LSTM(2 * (self.hidden // 2), self.hidden, batch_first=True, device=self.device)
        head = torch.nn.Linear(self.hidden, VOCABULARY, device=self.device)
        multiplier = 1.1 * torch.rand((), device=self.device)
        lstm.weight_ih_l0 *= multiplier
        lstm.weight_hh_l0 *= multiplier
        rows = conditions.clone()
        rows[:, :SEED_TOKENS] = seeds
        state = None
        for time_step in range(LENGTH - 1):
            here = slice(time_step, time_step + 1)
            inputs = torch.cat([embedding(rows[:, here]), embedding(conditions[:, here])], dim=-1)
            output, state = lstm(inputs, state)
            if time_step + 1 >= SEED_TOKENS:
                shares = torch.softmax(head(output[:, 0]) / TEMPERATURE, dim=-1)
                rows[:, time_step + 1] = torch.multinomial(shares, 1)[:, 0]
        return rows


def inputs(lanes: int, rows: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise for conditions and seeds, (lanes, rows, LENGTH) and (lanes, rows, SEED_TOKENS) uint8."""
    noise = Stream(0, range(lanes), [0] * lanes, device).integers(1000, VOCABULARY, rows, LENGTH + SEED_TOKENS)
    return noise[..., :LENGTH].to(torch.uint8), noise[..., LENGTH:].to(torch.uint8)


def compare(repeats: int, device: torch.device) -> dict[str, object]:
    """The straightforward loop, the source and its eager form: 138 rows of one program with hidden 102."""
    rows, hidden = 138, HIDDEN_OF_WIDTH[1024]
    conditions, seeds = inputs(1, rows, device)
    plain, long_conditions, long_seeds = StraightforwardSource(hidden, device), conditions[0].long(), seeds[0].long()
    sources = {"source": LSTMSource(vocabulary=VOCABULARY, hidden=hidden)}
    sources["eager"] = LSTMSource(vocabulary=VOCABULARY, hidden=hidden, eager=True)
    rounds = iter(range(1 << 30))

    def write(source: LSTMSource) -> torch.Tensor:
        return source.write(Stream(0, [0], [next(rounds)], device), conditions, seeds)

    calls = {"straightforward": lambda: plain.write(long_conditions, long_seeds)}
    taken = seconds(calls | {name: partial(write, source) for name, source in sources.items()}, repeats, device)
    result = {"rows": rows, "hidden": hidden, "tokens_per_row": LENGTH, "method": sources["source"].method(device)}
    for name, times in taken.items():
        result[f"{name}_seconds"] = summary(times)
    for name in sources:
        ratios = [first / second for first, second in zip(taken["straightforward"], taken[name], strict=True)]
        result[f"{name}_times_faster"] = summary(ratios)
    return result


def rates(repeats: int, device: torch.device) -> list[dict[str, object]]:
    """Rows a second at the hidden sizes of the shipped configs; on a GPU also of the eager form and of the loop.

    The loop writes its rows with one program, so it is given as many as the lanes have together.
    """
    on_gpu = device.type == "cuda"
    lanes, rows = (64 if on_gpu else 8), 16
    conditions, seeds = inputs(lanes, rows, device)
    stream = Stream(0, range(lanes), [0] * lanes, device)
    found = []
    for width, hidden in HIDDEN_OF_WIDTH.items():
        source = LSTMSource(vocabulary=VOCABULARY, hidden=hidden)
        calls = {source.method(device): partial(source.write, stream, conditions, seeds)}
        if on_gpu:
            eager, plain = LSTMSource(vocabulary=VOCABULARY, hidden=hidden, eager=True), StraightforwardSource
            calls["eager"] = partial(eager.write, stream, conditions, seeds)
            tokens = conditions.flatten(0, 1).long(), seeds.flatten(0, 1).long()
            calls["straightforward"] = partial(plain(hidden, device).write, *tokens)
        for name, times in seconds(calls, repeats, device).items():
            rate = summary([lanes * rows / each for each in times])
            sizes = {"width": width, "hidden": hidden, "lanes": lanes, "rows": rows}
            found.append({**sizes, "method": name, "rows_per_second": rate})
    return found


def table(result: dict) -> str:
    """The result as it is printed."""
    pair = result["comparison"]
    lines = [f"{key}: {value}" for key, value in result["machine"].items()]
    lines += ["", f"{pair['rows']} rows, hidden {pair['hidden']}, 1 lane     median   lowest  highest"]
    for name, numbers in pair.items():
        if isinstance(numbers, dict):
            lines.append(f"{name:30}{numbers['median']:9.3f}{numbers['lowest']:9.3f}{numbers['highest']:9.3f}")
    first = result["rates"][0]
    lines += ["", f"rows a second, {first['lanes']} lanes x {first['rows']} rows"]
    for rate in result["rates"]:
        numbers = rate["rows_per_second"]
        name = f"width {rate['width']}, {rate['method']}"
        lines.append(f"{name:30}{numbers['median']:9.0f}{numbers['lowest']:9.0f}{numbers['highest']:9.0f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--to", type=Path, default=Path("docs/benchmarks/generator_cpu.json"))
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    result = {
        "machine": machine(given.device),
        "comparison": compare(given.repeats, given.device),
        "rates": rates(given.repeats, given.device),
    }
    print(table(result))
    given.to.parent.mkdir(parents=True, exist_ok=True)
    given.to.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
