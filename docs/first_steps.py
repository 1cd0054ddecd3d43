"""First steps from Python: look at rows, train a small model, measure it on text it never saw, fine-tune it.

    python docs/first_steps.py [--folder runs/first_steps] [--rows 11200] [--fine-tuning-rows 3200] [key.sub=value ...]

docs/first_steps.md explains each step.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import upscale
from upscale.checkpoint import export
from upscale.checkpoint.run_directory import read_config
from upscale.config import files as config_files
from upscale.data import lanes
from upscale.data.sample import printable
from upscale.distributed.world import World
from upscale.evaluation import suite
from upscale.evaluation.table import table
from upscale.files import read_json_lines


def command(*words: str) -> None:
    """Run `upscale ...` in a process of its own; raises CalledProcessError when it fails."""
    subprocess.run([sys.executable, "-m", "upscale.cli", *words], check=True)


def look_at_rows(overrides: list[str], rounds: int = 30) -> list[str]:
    """Rows that the sources of configs/smoke.yaml write, as text; bytes that cannot be printed are dots."""
    config = config_files.load("configs/smoke.yaml", overrides).resolved()
    lane = lanes.from_config(config, range(1), "cpu")
    for _ in range(rounds):  # at first the buffer holds constant rows and noise
        rows = lane.draw(4)
    return printable(rows)


def pretrain(run: Path, rows: int, overrides: list[str]) -> list[dict]:
    """Train on synthetic rows; the logged steps."""
    command("train", "--config", "configs/smoke.yaml", f"run.dir={run}", f"schedule.instances={rows}", *overrides)
    return list(read_json_lines(run / "metrics.jsonl"))


def zero_shot(run: Path, tasks: list[str], slices: int) -> list[dict]:
    """Bits per character of the run's newest checkpoint on each task, beside the baselines."""
    config = read_config(run)
    file = run / "weights.safetensors"
    export.export(run, config, step=None, to=file)
    model = upscale.load(file)
    return suite.evaluate(
        lambda tokens: model(tokens, last_only=True)[:, 0],
        suite.datasets(tasks),
        slices=slices,
        context=config.model.context,
        world=World.single(),
        batch_rows=32,
    )


def fine_tune(folder: Path, pretrained: Path, rows: int, overrides: list[str]) -> dict[str, float]:
    """Bits per character of held-out Wikipedia after fine-tuning, from the pre-trained weights and from scratch."""
    corpus = folder / "wp"
    if not (corpus / "index.json").exists():
        command("prepare", "wp", "--from", "upscale/evaluation/texts/wp.xz", "--to", str(corpus))
    found = {}
    for name, start in (("pretrained", [f"init.from={pretrained}"]), ("scratch", [])):
        run = folder / name
        shared = [f"data.corpora=[{{path: {corpus}}}]", f"evaluation.data_dir={corpus}", "evaluation.tasks=[wp]"]
        given = [f"run.dir={run}", f"schedule.instances={rows}", *shared, *start, *overrides]
        command("train", "--config", "configs/finetune_smoke.yaml", *given)
        found[name] = list(read_json_lines(run / "evaluations.jsonl"))[-1]["bits_per_character"]
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/first_steps"))
    parser.add_argument("--rows", type=int, default=11_200)
    parser.add_argument("--fine-tuning-rows", type=int, default=3_200)
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="for every training")
    options = parser.parse_intermixed_args(arguments)
    run = options.folder / "pretraining"

    print("Rows that random LSTMs wrote:", *look_at_rows(options.overrides), sep="\n")
    steps = pretrain(run, options.rows, options.overrides)
    print(f"Loss: {steps[0]['loss_bits_per_byte']:.2f} bits per byte, then {steps[-1]['loss_bits_per_byte']:.2f}")
    print("Zero-shot:", table(zero_shot(run, ["dyck", "wp", "linux"], slices=200)), sep="\n")
    for name, bits in fine_tune(options.folder, run, options.fine_tuning_rows, options.overrides).items():
        print(f"Held-out Wikipedia after fine-tuning, {name}: {bits:.3f} bits per character")


if __name__ == "__main__":
    main()
