"""`python -m tests.soak --seed 0 --faults 36 --minutes 15 --to docs/benchmarks/soak.json`: the long soak, on a CPU."""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path

import torch

from tests.soak.soak import ENGINES, Soak, largest_difference, problems
from tests.test_train import metrics
from upscale.config.files import versions


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=36)
    parser.add_argument("--minutes", type=float, default=15, help="no further fault after so long")
    parser.add_argument("--ranks", type=int, default=4, help="at most; 1 to 12")
    parser.add_argument("--to", type=Path, default=Path("docs/benchmarks/soak.json"), help="file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        soak = Soak(Path(name), options.seed, options.faults, options.minutes, options.ranks, ENGINES)
        try:
            summary = soak.run(lambda line: print(line, flush=True))
        except AssertionError as error:
            print(f"the soak failed: {error}")
            return 1
        soak.alone("control", options.ranks, summary["steps"])
        control = largest_difference(metrics(Path(name) / "control"), metrics(Path(name) / "alone"))
    found = problems(summary)
    record = {
        "what": "a training under random faults against one rank without any; losses in bits per byte, float32, gloo",
        "seed": options.seed,
        "versions": {
            "torch": torch.__version__,
            "deepspeed": versions()["deepspeed"],
            "python": platform.python_version(),
        },
        **summary,
        f"loss_difference_of_{options.ranks}_ranks_without_faults": control,
        "problems": found,
    }
    options.to.parent.mkdir(parents=True, exist_ok=True)
    options.to.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
