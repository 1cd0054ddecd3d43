"""Small models at learning rates that are too high: which remedy keeps training going?

`python -m tests.benchmarks.stability` draws docs/benchmarks/stability.png and .json, in nine minutes on one core.
As in Wortsman et al. 2023, a small model at a too high learning rate stands for a large one at a usual one. A run
trains from scratch on the shipped excerpt of Wikipedia with one remedy at one learning rate and is watched: the loss,
the largest attention logit, the size of log sum exp of the output logits.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch

from tests import tiny
from upscale import optim
from upscale.config import Config
from upscale.distributed.world import World
from upscale.evaluation.tasks import TEXTS
from upscale.model import parametrization
from upscale.model.transformer import row_losses, row_z_losses
from upscale.training.stability import Observer

REMEDIES = {
    "none": {},
    "qk_norm": {"model__qk_norm": "true"},
    "z_loss 1e-3": {"optimizer__z_loss": 1e-3},
    "qk_norm, z_loss 1e-3": {"model__qk_norm": "true", "optimizer__z_loss": 1e-3},
}
LEARNING_RATES = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
WIDTH, HEADS, DEPTH, CONTEXT, ROWS, STEPS, WARMUP_STEPS, OBSERVE_EVERY, SEEDS = 64, 2, 4, 64, 8, 400, 50, 20, (0, 1)
SHOWN = 1e-1
"""The learning rate whose curves are drawn."""


def config(learning_rate: float, remedy: dict, seed: int) -> Config:
    """One plain block and progressive ones that are all awake, as most blocks of the large models are."""
    return tiny.config(
        run__seed=seed,
        model__width=WIDTH,
        model__heads=HEADS,
        model__depth=DEPTH,
        model__plain_blocks=1,
        model__context=CONTEXT,
        mup__base_width=WIDTH,
        optimizer__learning_rate=learning_rate,
        optimizer__weight_decay=0.01,
        schedule__wake_every=0,
        **remedy,
    )


def train(chosen: Config, text: torch.Tensor, steps: int) -> dict:
    """Bits per byte of every step and, every OBSERVE_EVERY steps, what the observer sees."""
    model = parametrization.build(chosen)
    observer, world = Observer(model), World.single()
    groups = optim.parameter_groups(model, chosen)
    optimizer = torch.optim.AdamW(
        {"params": [model.get_parameter(name) for name in group.names], "weight_decay": group.weight_decay}
        for group in groups
    )
    generator = torch.Generator().manual_seed(chosen.run.seed)
    losses, seen = [], {"step": [], "attention_logit_maximum": [], "log_partition_rms": []}
    for step in range(steps):
        for settings, group in zip(optimizer.param_groups, groups, strict=True):
            settings["lr"] = group.learning_rate * min(1, (step + 1) / WARMUP_STEPS)
        starts = torch.randint(len(text) - CONTEXT, (ROWS, 1), generator=generator)
        rows = text[starts + torch.arange(CONTEXT + 1)]
        logits = model(rows[:, :-1], DEPTH)
        loss = row_losses(logits, rows[:, 1:]).sum() / (ROWS * CONTEXT)
        penalty = chosen.optimizer.z_loss * row_z_losses(logits, rows[:, 1:]).sum() / (ROWS * CONTEXT)
        optimizer.zero_grad()
        (loss + penalty).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), chosen.optimizer.clip)
        optimizer.step()
        losses.append(loss.item() / math.log(2))
        if step % OBSERVE_EVERY == 0:
            found = observer.observe(model, rows, DEPTH, world)
            for key in seen:
                seen[key].append(found.get(key, step))
    return {"losses": [round(value, 4) for value in losses], "seen": seen}


def final(run: dict) -> float:
    """Mean of the last tenth of the losses."""
    tail = run["losses"][-max(1, len(run["losses"]) // 10) :]
    return sum(tail) / len(tail)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=Path("docs/benchmarks/stability"), help="path without extension")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = torch.from_numpy(TEXTS["wp"].load().data.copy())
    counts = torch.bincount(text.long(), minlength=256).double() / len(text)
    unigram = -(counts[counts > 0] * counts[counts > 0].log2()).sum().item()
    begin, runs = time.perf_counter(), {}
    for rate in LEARNING_RATES:
        for label, remedy in REMEDIES.items():
            runs[f"{label} at {rate:g}"] = [train(config(rate, remedy, seed), text, options.steps) for seed in SEEDS]
            ends = ", ".join(f"{final(run):.3f}" for run in runs[f"{label} at {rate:g}"])
            print(f"{rate:<6g} {label:22s} {ends} bits/byte  ({time.perf_counter() - begin:.0f} s)", flush=True)
    settings = {
        **{"width": WIDTH, "blocks": DEPTH, "context": CONTEXT, "rows": ROWS, "steps": options.steps},
        **{"warmup_steps": WARMUP_STEPS, "seeds": SEEDS, "unigram_bits_per_byte": unigram, "torch": torch.__version__},
    }
    shown = {key: several for key, several in runs.items() if key.endswith(f" at {SHOWN:g}")}
    finals = {key: [final(run) for run in several] for key, several in runs.items()}
    options.to.with_suffix(".json").write_text(
        json.dumps({"settings": settings, "final_bits_per_byte": finals, "curves": shown}) + "\n"
    )
    draw(runs, finals, unigram, options.to.with_suffix(".png"))


def draw(runs: dict, finals: dict, unigram: float, to: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    ends, curves, logits = figure.subplots(1, 3)
    for index, label in enumerate(REMEDIES):
        colour = f"C{index}"
        means = [sum(finals[f"{label} at {rate:g}"]) / len(SEEDS) for rate in LEARNING_RATES]
        ends.semilogx(LEARNING_RATES, means, "o-", color=colour, label=label)
        for number, run in enumerate(runs[f"{label} at {SHOWN:g}"]):
            smooth = [
                sum(run["losses"][max(0, i - 9) : i + 1]) / len(run["losses"][max(0, i - 9) : i + 1])
                for i in range(len(run["losses"]))
            ]
            curves.plot(smooth, color=colour, alpha=0.9 - 0.4 * number)
            logits.semilogy(
                run["seen"]["step"], run["seen"]["attention_logit_maximum"], color=colour, alpha=0.9 - 0.4 * number
            )
    for axes in (ends, curves):
        axes.axhline(unigram, color="black", linestyle=":", linewidth=1)
        axes.set_ylabel("loss (bits per byte)")
    ends.set(title="end of training, mean of seeds", xlabel="learning rate")
    ends.legend(fontsize=8)
    curves.set(title=f"learning rate {SHOWN:g}; dotted: byte frequencies", xlabel="step", ylim=(3.5, 8))
    logits.set(title=f"learning rate {SHOWN:g}", xlabel="step", ylabel="largest attention logit")
    figure.savefig(to, dpi=120)


if __name__ == "__main__":
    main()
