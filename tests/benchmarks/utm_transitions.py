"""Makes the weights of the UTM's Markov sampler: which instructions programs with rich output are made of.

Random programs run at alphabet 128, 100 cells and 1000 steps. Those that print at least 256 tokens, 16 of the first 256
distinct, count: how often each symbol follows each context of 0 to 2 symbols in the program as executed. The first
generation's programs are uniform; those of later ones are drawn from the counts before them.

    python tests/benchmarks/utm_transitions.py [--programs 3000] [--generations 3] [--to FILE]
"""

import argparse
import itertools
import json
import random
from pathlib import Path

from upscale.sources.utm import SYMBOLS, UTMSource

LEAST_PRINTED, LEAST_DISTINCT, LENGTH, SEED = 256, 16, 200, 0
BOUNDS = dict(alphabet=128, memory=100, steps=1000)


def programs(counts: dict[str, list[int]] | None, draw: random.Random, number: int):
    """Programs of `LENGTH` symbols: uniform, or from the chain of the counts."""
    for _ in range(number):
        if counts is None:
            yield "".join(draw.choices(SYMBOLS[:7], k=LENGTH))
            continue
        program = ""
        while len(program) < LENGTH:
            program += draw.choices(SYMBOLS, [count + 0.5 for count in counts[program[-2:]]])[0]
        yield program


def counted(executed: list[str]) -> dict[str, list[int]]:
    contexts = ["".join(each) for size in range(3) for each in itertools.product(SYMBOLS, repeat=size)]
    counts = {context: [0] * len(SYMBOLS) for context in contexts}
    for program in executed:
        for place, symbol in enumerate(program):
            for size in range(min(place, 2) + 1):
                counts[program[place - size : place]][SYMBOLS.index(symbol)] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=3_000, help="that count in each generation")
    parser.add_argument("--generations", type=int, default=3)
    parser.add_argument("--to", type=Path, default=Path("upscale/sources/utm/transitions.json"))
    options = parser.parse_args()
    source, draw, counts = UTMSource(vocabulary=256, **BOUNDS), random.Random(SEED), None
    for generation in range(options.generations):
        kept, tried = [], 0
        for program in programs(counts, draw, 1 << 40):
            tried += 1
            _, output, _, executed = source.run(program, 512)
            if len(output) >= LEAST_PRINTED and len(set(output[:LEAST_PRINTED])) >= LEAST_DISTINCT:
                kept.append(executed)
                if len(kept) == options.programs:
                    break
        counts = counted(kept)
        print(
            f"generation {generation}: {tried} programs for {len(kept)}, {sum(map(len, kept)) / len(kept):.1f} symbols"
        )
    made = {"made_by": "tests/benchmarks/utm_transitions.py", "symbols": SYMBOLS, "counts": counts}
    lines = json.dumps(made, indent=1).replace(",\n   ", ", ").replace("[\n   ", "[").replace("\n  ]", "]")
    options.to.write_text(lines + "\n")


if __name__ == "__main__":
    main()
