"""Coordinate check: do activations keep their size as the width grows, over a few steps of training?

`python -m tests.benchmarks.coordinate_check` draws docs/coordinate_check.png and .json. The measuring function takes a
training step of any engine, so that the tests run it under ZeRO as well.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch

from tests import tiny
from upscale import optim
from upscale.config import Config
from upscale.model import parametrization
from upscale.model.transformer import Transformer, row_losses

WIDTHS = (64, 128, 256, 512, 1024)
BASE_WIDTH, STEPS, ROWS, CONTEXT, DEPTH = 128, 4, 8, 32, 3
LOGITS = "change of logits"


def config(width: int, mup: bool, **changes: object) -> Config:
    """Two plain blocks and a progressive one; heads of size 32."""
    return tiny.config(
        model__width=width,
        model__heads=width // 32,
        model__depth=DEPTH,
        model__context=CONTEXT,
        model__group_blocks=1,
        schedule__wake_every=0,
        schedule__warmup=0,
        mup__base_width=BASE_WIDTH,
        mup__enabled=str(mup).lower(),
        **changes,
    )


def rows(step: int, tokens: int = 256) -> torch.Tensor:
    """Rows of so many token ids. Of few, a model learns something in four steps; of 256 drawn alike it learns what
    shrinks as 1 / sqrt(width) where no learned position is common to all rows."""
    return torch.randint(0, tokens, (ROWS, CONTEXT + 1), generator=torch.Generator().manual_seed(step))


@torch.no_grad()
def coordinates(
    model: Transformer, forward: Callable, initial: torch.Tensor | None, tokens: int = 256
) -> tuple[dict[str, float], torch.Tensor]:
    """Mean absolute value of what enters each norm of one batch, and of how far logits moved from `initial`."""
    sizes: dict[str, float] = {}
    hooks = []
    for name, module in model.named_modules():
        if name.endswith(("attention.project_out", "feedforward_out")):
            hooks.append(
                module.register_forward_hook(
                    lambda _module, _inputs, output, name=name: sizes.__setitem__(name, output.abs().mean().item())
                )
            )
    logits = forward(rows(99, tokens)[:, :-1])
    for hook in hooks:
        hook.remove()
    sizes[LOGITS] = (logits - initial).abs().mean().item() if initial is not None else 0.0
    return sizes, logits


def plain(width: int, mup: bool, tokens: int = 256, **changes: object) -> dict[str, float]:
    """Coordinates after STEPS steps of the config's optimizer, without an engine."""
    chosen = config(width, mup, **changes)
    model = parametrization.build(chosen)
    groups = optim.parameter_groups(model, chosen)
    optimizer = optim.create(chosen, groups, dict(model.named_parameters()), torch.device("cpu")).torch_optimizer

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        return model(inputs, DEPTH)

    _, initial = coordinates(model, forward, None, tokens)
    for step in range(STEPS):
        batch = rows(step, tokens)
        optimizer.zero_grad()
        (row_losses(model(batch[:, :-1], DEPTH), batch[:, 1:]).sum() / (ROWS * CONTEXT)).backward()
        optimizer.step()
    return coordinates(model, forward, initial, tokens)[0]


def slopes(mup: bool, measure: Callable[[int, bool], dict[str, float]] = plain) -> dict[str, float]:
    """The slope of log(coordinate) over log(width), by least squares, for each coordinate."""
    measured = [measure(width, mup) for width in WIDTHS]
    return {name: slope([sizes[name] for sizes in measured]) for name in measured[0]}


def slope(values: list[float]) -> float:
    x = [math.log2(width) for width in WIDTHS[: len(values)]]
    y = [math.log2(value) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def main() -> None:
    from matplotlib.figure import Figure

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=Path("docs/coordinate_check"), help="path without extension")
    to = parser.parse_args().to
    found = {
        label: {width: plain(width, mup) for width in WIDTHS}
        for label, mup in (("with muP", True), ("without muP", False))
    }
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (label, sizes) in zip(figure.subplots(1, 2, sharey=True), found.items(), strict=True):
        for name in sizes[WIDTHS[0]]:
            axes.loglog(WIDTHS, [sizes[width][name] for width in WIDTHS], "o-", label=name, base=2)
        axes.set(title=f"{label}, after {STEPS} steps", xlabel="width", xticks=WIDTHS, xticklabels=WIDTHS)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.axes[0].set_ylabel("mean absolute value")
    figure.savefig(to.with_suffix(".png"), dpi=120)
    growth = {label: {n: slope([s[w][n] for w in WIDTHS]) for n in s[WIDTHS[0]]} for label, s in found.items()}
    to.with_suffix(".json").write_text(json.dumps({"values": found, "slopes": growth}, indent=1) + "\n")
    print(json.dumps(growth, indent=1))


if __name__ == "__main__":
    main()
