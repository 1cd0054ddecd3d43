"""Does pre-training on random programs help on real text? A study for a machine without a GPU.

`python -m tests.benchmarks.finetune_study --data corpora` pre-trains once, then fine-tunes on every prepared corpus and
for every seed from the pre-trained weights and from scratch, and writes docs/studies/finetune.json, .png and .md as
measured; about 70 minutes on two cores. Every run is an ordinary one below --runs, so that the same command continues
after an interruption.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from upscale.files import write_atomically
from upscale.report import comparison
from upscale.report.runs import Run, read_runs, value

ROOT = Path(__file__).parents[2]
COLOURS = {"pretrained": "C0", "scratch": "C1"}


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("corpora"), help="folder of the prepared corpora")
    parser.add_argument("--corpora", nargs="+", default=["wp", "linux"], help="their names in it")
    parser.add_argument("--runs", type=Path, default=Path("runs/finetune_study"), help="where the runs go")
    parser.add_argument("--to", type=Path, default=Path("docs/studies/finetune"), help="path without extension")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1], help="of the fine-tunings: order, fresh weights"
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--width", type=int, default=128, help="a multiple of 32, the size of a head")
    parser.add_argument("--pretrain-instances", type=int, default=80_000)
    parser.add_argument("--finetune-instances", type=int, default=9_600)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of the fine-tunings; pre-training has 1e-3")
    parser.add_argument("--slices", type=int, default=250)
    return parser.parse_args(arguments)


def train(options: argparse.Namespace, directory: Path, config: str, *overrides: str) -> None:
    """One run to its end; its console goes to a file beside it. A finished run is left as it is."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={options.ranks}"]
    command += [f"--master_port={port}", "upscale/train.py", "--config", f"configs/{config}.yaml"]
    command += [f"run.dir={directory.resolve()}", f"run.name={directory.name}", "tracking.wandb=disabled"]
    command += [f"model.width={options.width}", f"model.heads={options.width // 32}", f"mup.base_width={options.width}"]
    directory.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    with open(directory / "console.txt", "a") as console:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run([*command, *overrides], cwd=ROOT, env=environment, stdout=console, stderr=console)
    if done.returncode:
        raise SystemExit(f"{directory.name} ended with code {done.returncode}; see {directory / 'console.txt'}")
    print(f"{directory.name}: {time.perf_counter() - begin:.0f} s", flush=True)


def evaluation(options: argparse.Namespace, every: int) -> list[str]:
    return [f"evaluation.every={every}", f"evaluation.slices={options.slices}"]


def pretrain(options: argparse.Namespace) -> Path:
    directory, total = options.runs / "pretrained", options.pretrain_instances
    schedule = [f"schedule.instances={total}", f"schedule.halve_every={max(4_000, total // 2)}"]
    train(options, directory, "smoke", *schedule, f"evaluation.every={total // 4}", f"checkpoint.every={total // 8}")
    return directory


def finetune(options: argparse.Namespace, origin: Path) -> dict[str, list[Run]]:
    """The runs of every corpus: for each seed from the pre-trained weights, then from scratch."""
    total, found = options.finetune_instances, {}
    for corpus in options.corpora:
        directories = []
        for seed in options.seeds:
            for label, start in (("pretrained", str(origin.resolve())), ("scratch", "null")):
                directory = options.runs / f"{corpus}-{label}-{seed}"
                text = f"{{path: {(options.data / corpus).resolve()}}}"
                settings = [f"init.from={start}", f"run.seed={seed}", f"data.corpora=[{text}]"]
                settings += [f"evaluation.data_dir={options.data.resolve()}", f"schedule.instances={total}"]
                settings += [f"optimizer.learning_rate={options.learning_rate}", f"schedule.warmup={total // 12}"]
                settings += [f"schedule.halve_every={total}", *evaluation(options, total // 8)]
                train(options, directory, "finetune_smoke", *settings)
                directories.append(directory)
        found[corpus] = read_runs(directories)
    return found


def summarize(found: dict[str, list[Run]]) -> dict:
    """For each corpus and seed the numbers of every dataset."""
    fields = "scratch_best scratch_best_instances pretrained_reaches saved pretrained_final scratch_final gain".split()
    fields += ["final_margin", "before", "forgotten"]
    summary: dict = {}
    for corpus, runs in found.items():
        for pair in comparison.pairs(runs):
            numbers = {}
            for key in pair.tasks:
                one = comparison.compare(pair, key)
                known = {field: getattr(one, field) for field in fields}
                numbers[key[0]] = {name: None if math.isnan(given) else given for name, given in known.items()}
            seed = pair.pretrained.setting("run", "seed")
            summary.setdefault(corpus, {})[str(seed)] = {"datasets": numbers, "words": comparison.sentences(pair)}
    return summary


def curve(run: Run, corpus: str) -> tuple[list[float], list[float]]:
    rows = next(rows for (task, _), rows in run.scored.items() if task == corpus)
    return [value(row, "instances") for row in rows], [value(row, "bits_per_character") for row in rows]


def draw(found: dict[str, list[Run]], to: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8 * len(found), 3.8), layout="constrained")
    for axes, (corpus, runs) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        for run in runs:
            label = "scratch" if run.setting("init", "from") is None else "pretrained"
            name = label if run.setting("run", "seed") == runs[0].setting("run", "seed") else None
            axes.plot(*curve(run, corpus), "o-", markersize=3, color=COLOURS[label], label=name)
        highest = max(max(curve(run, corpus)[1][1:]) for run in runs)
        axes.set(title=corpus, xlabel="instances (rows)", ylabel="bits per character, held out", ylim=(None, highest))
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(to, dpi=130)


def table(summary: dict) -> str:
    """Markdown: one line a corpus and seed, of the corpus's own held-out text; forgetting of the others in words."""
    heads = ["corpus", "seed", "from pre-trained", "from scratch", "gain (two s.e.)", "scratch's best after"]
    heads += ["pre-trained there after"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    words = []
    for corpus, seeds in summary.items():
        for seed, one in seeds.items():
            n = one["datasets"][corpus]
            reached = "never" if n["pretrained_reaches"] is None else f"{n['pretrained_reaches']:,.0f}"
            cells = [corpus, seed, f"{n['pretrained_final']:.3f}", f"{n['scratch_final']:.3f}"]
            cells += [f"{n['gain']:+.3f} ({n['final_margin']:.3f})", f"{n['scratch_best_instances']:,.0f}", reached]
            lines.append(f"| {' | '.join(cells)} |")
            words.append(f"- {corpus}, seed {seed}: {one['words'][-1]}")
    return "\n".join([*lines, "", *words])


def main(arguments: list[str] | None = None) -> None:
    options = options_of(arguments)
    begin = time.perf_counter()
    origin = pretrain(options)
    found = finetune(options, origin)
    summary = summarize(found)
    options.to.parent.mkdir(parents=True, exist_ok=True)
    (pretrained,) = read_runs([origin])
    settings = {key: str(given) if isinstance(given, Path) else given for key, given in vars(options).items()}
    times = {run.path.name: run.seconds for runs in found.values() for run in runs}
    record = {
        "settings": settings,
        "pretraining": {"instances": float(pretrained.instances[-1]), "step_seconds": pretrained.seconds},
        "finetuning_step_seconds": times,
        "versions": pretrained.setting("versions", "torch"),
        "results": summary,
    }
    write_atomically(options.to.with_suffix(".json"), (json.dumps(record, indent=1) + "\n").encode())
    draw(found, options.to.with_suffix(".png"))
    text = (
        f"Pre-trained for {pretrained.instances[-1]:,.0f} rows in {pretrained.seconds / 60:.0f} minutes of steps "
        f"(width {options.width}, context 256, {options.ranks} ranks), fine-tuned for {options.finetune_instances:,} "
        f"rows. Bits per character of the held-out split, {options.slices} slices.\n\n{table(summary)}\n\n"
        f"![bits per character by instances]({options.to.name}.png)\n\n"
        f"    python -m tests.benchmarks.finetune_study {' '.join(sys.argv[1:] if arguments is None else arguments)}\n"
    )
    write_atomically(options.to.with_suffix(".md"), f"# Fine-tuning against scratch\n\n{text}".encode())
    print(f"{table(summary)}\n{options.to}.json, .png, .md written after {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
