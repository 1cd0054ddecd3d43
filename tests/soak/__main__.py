"""`python -m tests.soak --faults 1000`: rounds of random faults for hours, on a CPU, which go on after an interruption.

FOLDER/journal.jsonl has a line for each fault and each round. The same command again goes on with the next round, until
so many faults have happened; the round that was cut off is forgotten. A round that fails stays in FOLDER/round-N.
"""

from __future__ import annotations

import argparse
import collections
import json
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from tests.forks import ROOT
from tests.soak.faults import KINDS
from tests.soak.invariants import Reference, problems
from tests.soak.soak import ENGINES, Ground, Limits, Round, remove
from upscale.config.files import versions
from upscale.files import read_json_lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=1000, help="in all, those in the journal included")
    parser.add_argument("--round", type=int, default=12, help="faults in one run directory")
    parser.add_argument("--ranks", type=int, default=4, help="at most; 1 to 12")
    parser.add_argument("--folder", type=Path, default=Path("soak"), help="journal and run directories")
    parser.add_argument("--to", type=Path, help="file for the summary")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # through `live`, which clears up
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    journal, code = Journal(folder / "journal.jsonl"), commit()
    while (done := journal.faults()) < options.faults:
        number = journal.next_round()
        count = min(options.round, options.faults - done)
        limits = Limits.on_this_machine(options.ranks, ENGINES, small_disk=True)
        live(journal, folder, f"{options.seed}/{number}", number, count, limits, code)
    summary = journal.summary() | {"seed": options.seed, "faults a round": options.round, "most ranks": options.ranks}
    print(json.dumps(summary, indent=1))
    if options.to:
        options.to.write_text(json.dumps(summary, indent=1) + "\n")
    return 1 if summary["problems"] else 0


def live(journal: Journal, folder: Path, seed: str, number: int, faults: int, limits: Limits, code: str) -> None:
    place, begin, steps = folder / f"round-{number}", time.monotonic(), 0
    reference = Reference(folder / "reference", limits)
    if place.exists():  # cut off with the soak itself
        Ground(place, Limits()).clear()
        remove(place)
    run = Round(place, seed, limits)
    found = ["cut off"]
    try:
        steps = run.live(KINDS, faults, lambda record: journal.add("fault", round=number, **record))
        found = problems(run, reference, steps)
    except AssertionError as error:
        found = [str(error)[-2000:]]
    finally:
        run.clear(keep=bool(found))
    journal.add(
        "round",
        round=number,
        commit=code,
        faults=len(run.happened),
        steps=steps,
        starts=len(run.shapes),
        restarts=run.output().count("supervisor: starting again"),
        refused_starts=run.refused_starts,
        damaged_checkpoints=run.damaged,
        loss_difference=run.loss_difference,
        seconds=round(time.monotonic() - begin),
        problems=found,
    )
    if not found:
        remove(place)


def commit() -> str:
    """The commit that is checked out here, with a mark where files differ from it."""
    words = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


class Journal:
    """What has happened, a line each; of a round only counts what has its line at the end."""

    def __init__(self, path: Path):
        self.path = path

    def add(self, event: str, **record: object) -> None:
        line = json.dumps({"time": time.strftime("%Y-%m-%d %H:%M:%S"), "event": event, **record})
        with open(self.path, "a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def lines(self, event: str) -> list[dict]:
        found = read_json_lines(self.path) if self.path.exists() else []
        return [record for record in found if record["event"] == event]

    def faults(self) -> int:
        return sum(record["faults"] for record in self.lines("round"))

    def next_round(self) -> int:
        return max((record["round"] for record in self.lines("round")), default=0) + 1

    def summary(self) -> dict:
        rounds = self.lines("round")
        ended = {record["round"] for record in rounds}
        faults = {  # of a round that was cut off and lived again the second time counts
            (record["round"], record["index"]): record for record in self.lines("fault") if record["round"] in ended
        }
        shapes = [record["shape"] for record in faults.values()]
        sums = ("faults", "steps", "starts", "restarts", "refused_starts", "damaged_checkpoints", "seconds")
        return {
            "what": "trainings under random faults against one rank without any; bits per byte, float32, gloo, a CPU",
            "versions": {"torch": torch.__version__, "deepspeed": versions()["deepspeed"]},
            "python": platform.python_version(),
            "rounds": len(rounds),
            "commits": dict(collections.Counter(record.get("commit", "unknown") for record in rounds)),
            **{key: sum(record[key] for record in rounds) for key in sums},
            "kinds": dict(sorted(collections.Counter(record["kind"] for record in faults.values()).items())),
            "worlds": sorted({ranks for ranks, _ in shapes}),
            "engines": sorted({engine for _, engine in shapes}),
            "largest_relative_loss_difference": max((record["loss_difference"] for record in rounds), default=None),
            "problems": [f"round {record['round']}: {text}" for record in rounds for text in record["problems"]],
        }


if __name__ == "__main__":
    raise SystemExit(main())
