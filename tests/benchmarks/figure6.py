"""Figure 6 of Bloem 2025 at a size for CPUs: every source trains the same small model on equally many rows.

Each curve is the `data` section of a config in configs/ablations/ on top of a base config, for every seed. What is
compared is bits per character on texts and tasks that no source has seen. Runs that are finished are not run again, so
the same command goes on where it was stopped. A new config there is a new curve, unless LEFT_OUT says why not.

    python tests/benchmarks/figure6.py [--base configs/w128.yaml] [--instances 11200] [--seeds 2] [--to docs/studies]
        [--curves lstm utm ...] [--runs runs/figure6] [section.key=value ...]

Writes figure6.json (every evaluation), figure6.md (the table) and figure6.png into --to.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import yaml

from upscale import schedule
from upscale.checkpoint import run_directory
from upscale.config import Config
from upscale.data import lanes

ABLATIONS = Path(__file__).parents[2] / "configs/ablations"
LEFT_OUT = {
    "nca_paper": "its tokens are no bytes",
    "nest_paper": "its tokens are no bytes",
    "dyck_balanced_paper": "dyck_balanced in longer rows",
    "nobuf_paper": "one lane, of the paper's batch",
    "paper_single_lane": "one lane, of the paper's batch",
}
"""Configs that are no curve, and why."""
CURVES = sorted(path.stem for path in ABLATIONS.glob("*.yaml") if path.stem not in LEFT_OUT)
SHORTER = {"noisy_set": {"total": 255}, "dyck_delimited": {"pairs": [16, 96], "depth": 32}}
"""Keys of sources whose samples are longer than a row of the base, so that one fits."""
TASKS = ["dyck", "ndfa", "aut", "bitsrep", "toy", "wp", "linux", "code"]
EVALUATIONS = 4
NAMED = 6
"""Curves with a colour and a name in the picture, the best by their mean; the others are grey."""
NOISE = "uniform"


def overrides(curve: str, seed: int, options: argparse.Namespace) -> list[str]:
    """What a run says on top of the base."""
    directory = options.runs / f"{curve}-{seed}"
    data = yaml.safe_load((ABLATIONS / f"{curve}.yaml").read_text()).get("data", {})
    if curve in SHORTER:
        data["sources"] = [{**source, **SHORTER[curve]} for source in data["sources"]]
    settings = {
        "run.name": directory.name,
        "run.dir": str(directory),
        "run.seed": seed,
        "schedule.instances": options.instances,
        "evaluation.every": max(1, options.instances // EVALUATIONS),
        "evaluation.tasks": TASKS,
        "tracking.wandb": "disabled",
        "checkpoint.every": 0,
        **{f"data.{key}": value for key, value in data.items()},
    }
    return [*(f"{key}={json.dumps(value)}" for key, value in settings.items()), *options.overrides]  # JSON is YAML


def train(curve: str, seed: int, options: argparse.Namespace) -> Path:
    """One run to its end; its directory."""
    directory = options.runs / f"{curve}-{seed}"
    given = overrides(curve, seed, options)
    command = [sys.executable, "-m", "upscale.train", "--config", options.base, *given]
    with open(options.runs / f"{directory.name}.log", "w") as log:
        if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode:
            raise SystemExit(f"{directory.name} failed; its output is in {log.name}")
    return directory


def evaluations(directory: Path) -> list[dict]:
    """Bits per character by instances and task, each measured once."""
    lines = (directory / "evaluations.jsonl").read_text().splitlines()
    records = {(record["instances"], record["task"]): record for record in map(json.loads, lines)}
    wanted = ("instances", "task", "bits_per_character", "markov_bits_per_character")
    return [{key: record[key] for key in wanted} for record in records.values()]


def targets_per_row(config: Config) -> float:
    """Targets of a training row, mean over all rows of a resolved config's run, which are written once more where rows
    choose their targets."""
    if not config.data.masked:
        return config.model.context + 1 - config.data.first_target
    rows, seen, found = lanes.from_config(config, range(config.data.lanes), "cpu"), 0, 0
    while seen < config.schedule.instances:
        batch = schedule.batch_size(seen, config.schedule, config.data.lanes)
        found += int((rows.draw(batch // config.data.lanes)[:, 1:] >= 0).sum())
        seen += batch
    return found / seen


def final(records: list[dict], curve: str, task: str) -> list[float]:
    """The last value of each seed."""
    mine = [record for record in records if (record["curve"], record["task"]) == (curve, task)]
    last = {record["seed"]: record for record in sorted(mine, key=lambda record: record["instances"])}
    return [record["bits_per_character"] for record in last.values()]


def table(records: list[dict], curves: list[str], options: argparse.Namespace) -> str:
    """Markdown: mean over seeds of the last evaluation, with half the range."""
    lines = [
        "# Every source on equally many rows",
        "",
        f"Bits per character after {options.instances:,} rows, mean of {options.seeds} seeds, +- half their range; "
        f"base {options.base}. Targets: tokens of a training row that carry loss, in the mean. A curve has the sources "
        "of the config of its name in `configs/ablations/`, in rows of the base's length.",
        "",
        "| source | targets | " + " | ".join(TASKS) + " | mean |",
        "|---" * (len(TASKS) + 3) + "|",
    ]
    targets = {record["curve"]: record["targets_per_row"] for record in records}
    for curve in ordered(records, curves):
        values = [final(records, curve, task) for task in TASKS]
        means = [statistics.mean(each) for each in values]
        cells = [f"{mean:.2f} +- {(max(each) - min(each)) / 2:.2f}" for mean, each in zip(means, values, strict=True)]
        lines.append(f"| {curve} | {targets[curve]:.0f} | {' | '.join(cells)} | {statistics.mean(means):.2f} |")
    baseline = {record["task"]: record["markov_bits_per_character"] for record in records}
    lines.append("| in-context Markov | | " + " | ".join(f"{baseline[task]:.2f}" for task in TASKS) + " | |")
    changed = [f"{curve} with {json.dumps(SHORTER[curve])}" for curve in curves if curve in SHORTER]
    lines += ["", f"So that a sample fits into a row: {', '.join(changed)}."] if changed else []
    changed = ["--base", options.base, "--instances", str(options.instances), "--seeds", str(options.seeds)]
    command = shlex.join(["python", "tests/benchmarks/figure6.py", *changed, *options.overrides])
    return "\n".join([*lines, "", f"    {command}", "", "![bits per character over rows](figure6.png)"]) + "\n"


def ordered(records: list[dict], curves: list[str]) -> list[str]:
    """The curves by their last values' mean over tasks, the best first."""

    def mean(curve: str) -> float:
        return statistics.mean(statistics.mean(final(records, curve, task)) for task in TASKS)

    return sorted(curves, key=mean)


def draw(records: list[dict], curves: list[str], path: Path) -> None:
    """A panel a task: bits per character over rows. The best curves in colours with the range of their seeds, uniform
    noise in black, the mean of each other one in grey."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from upscale.report.canvas import look_of

    figure = Figure(figsize=(13, 7), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    best = ordered(records, curves)
    looks = {curve: {**look_of(index), "zorder": 3} for index, curve in enumerate(best[:NAMED])}
    looks.setdefault(NOISE, {"color": "black", "linestyle": (0, (1, 1.2)), "linewidth": 1.8, "zorder": 3})
    others = {"color": "#b5b5b5", "linewidth": 0.9, "zorder": 2}
    for panel, task in zip(figure.subplots(2, 4).ravel(), TASKS, strict=True):
        for curve in best:
            look = looks.get(curve, others)
            points: dict[int, list[float]] = {}
            for record in records:
                if (record["curve"], record["task"]) == (curve, task):
                    points.setdefault(record["instances"], []).append(record["bits_per_character"])
            places = sorted(points)
            label = curve if curve in looks else None
            panel.plot(places, [statistics.mean(points[place]) for place in places], label=label, **look)
            if curve in looks:
                low, high = ([pick(points[place]) for place in places] for pick in (min, max))
                panel.fill_between(places, low, high, color=look["color"], alpha=0.15, linewidth=0)
        panel.plot([], [], label=f"{len(set(best) - set(looks))} others (in the table)", **others)
        panel.axhline(8, color="black", linewidth=0.8, linestyle=":")
        panel.set_title(task, loc="left")
        panel.set_xlabel("rows")
        panel.set_ylim(top=9)
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=8, frameon=False)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="configs/w128.yaml")
    parser.add_argument("--instances", type=int, default=11_200)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--curves", nargs="+", choices=CURVES, default=CURVES)
    parser.add_argument("--runs", type=Path, default=Path("runs/figure6"))
    parser.add_argument("--to", type=Path, default=Path("docs/studies"))
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    options = parser.parse_intermixed_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    options.to.mkdir(parents=True, exist_ok=True)
    records, targets = [], {}
    for seed in range(options.seeds):
        for curve in options.curves:
            directory = train(curve, seed, options)
            if curve not in targets:
                targets[curve] = targets_per_row(run_directory.read_config(directory).resolved())
            about = {"curve": curve, "seed": seed, "targets_per_row": round(targets[curve], 3)}
            mine = [{**about, **record} for record in evaluations(directory)]
            records += mine
            last = statistics.mean(final(mine, curve, task)[0] for task in TASKS)
            print(f"{curve} seed {seed}: {last:.3f} bits per character, mean of {len(TASKS)} tasks", flush=True)
    (options.to / "figure6.json").write_text(json.dumps(records, indent=1) + "\n")
    (options.to / "figure6.md").write_text(table(records, options.curves, options))
    draw(records, options.curves, options.to / "figure6.png")
    print((options.to / "figure6.md").read_text())


if __name__ == "__main__":
    main()
