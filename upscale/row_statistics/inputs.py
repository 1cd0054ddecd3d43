"""What can be measured: the rows that a config trains on, slices of a text or task, slices of a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from upscale.config import files as config_files
from upscale.data import lanes
from upscale.errors import UserError
from upscale.evaluation import suite
from upscale.machine import accelerator
from upscale.sources.tokens import ids

ROWS = 256
LENGTH = 513
_LANES = 2


def gather(names: Sequence[str], overrides: Sequence[str], *, rounds: int) -> dict[str, np.ndarray]:
    """(ROWS, length) tokens of each thing, all equally long: LENGTH tokens, or as few as the shortest config has.

    A name ending in .yaml is a config, whose buffers are drawn from after `rounds` rounds; a name of a text or task is
    that; any other is a file. Overrides are for the configs. Raises UserError for what is none of these.
    """
    for name in names:
        if not (name.endswith((".yaml", ".yml")) or name in suite.NAMES or Path(name).is_file()):
            raise UserError(
                f"--stats {name}: neither a config (*.yaml), nor a file, nor one of {', '.join(suite.NAMES)}; "
                "overrides stand before --stats"
            )
    found: dict[str, np.ndarray] = {}
    for name in names:
        label = Path(name).stem if name.endswith(".yaml") else name
        if label in found:
            raise UserError(f"--stats {name}: there are two things called {label}; give each once")
        if name.endswith((".yaml", ".yml")):
            found[label] = _of_config(name, overrides, rounds)
        elif name in suite.NAMES:
            dataset = suite.datasets([name])[0]
            if dataset.skipped:
                raise UserError(f"--stats {name}: {dataset.skipped}; or give the file itself")
            found[label] = _slices(name, dataset.data)
        else:
            found[label] = _slices(name, np.fromfile(name, np.uint8))
    length = min(rows.shape[1] for rows in found.values())
    return {name: rows[:, :length] for name, rows in found.items()}


def _of_config(path: str, overrides: Sequence[str], rounds: int) -> np.ndarray:
    config = config_files.load(Path(path), list(overrides)).resolved()
    device = accelerator.device_type()
    made = lanes.from_config(config, range(_LANES), device)
    for _ in range(rounds - 1):
        made.draw(1)
    return ids(made.draw(-(-ROWS // _LANES)))[:ROWS, :LENGTH].cpu().numpy()


def _slices(name: str, data: np.ndarray) -> np.ndarray:
    """Slices at random places, the same for the same data."""
    if len(data) < LENGTH:
        raise UserError(f"--stats {name}: it has {len(data)} bytes; a slice needs {LENGTH}")
    starts = np.random.default_rng(0).integers(0, len(data) - LENGTH + 1, ROWS)
    return data[starts[:, None] + np.arange(LENGTH)]
