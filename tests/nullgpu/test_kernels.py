"""Triton's kernels against its real front end and assembler, for the values of the launches that shipped configs make.

The interpreter that other tests use specialises nothing: an argument that equals 1, or is a multiple of 16, or needs 64
bits, makes another kernel on a GPU.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.nullgpu import standin

CONFIGS = sorted(standin.REPOSITORY.glob("configs/w*.yaml"))
FEW = [path for path in CONFIGS if path.stem in ("w384", "w1024", "w4096")]
GRU = standin.REPOSITORY / "configs/ablations/gru.yaml"


def drawn(configs: list[Path]) -> str:
    done = subprocess.run(
        [sys.executable, str(standin.HERE / "draw_configs.py"), *map(str, configs)],
        env=standin.environment(),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    "configs", [pytest.param([*FEW, GRU], id="some"), pytest.param(CONFIGS, id="all", marks=pytest.mark.slow)]
)
def test_every_kernel_compiles_for_every_launch_of_shipped_configs(configs):
    """Seeds 0, 1, 16, 2^31, 2^32, 2^32 + 1 and 2^64 - 1; first and full batch; 1 and 8 ranks."""
    lines = drawn(configs).splitlines()
    assert len(lines) == len(configs)
    for name in ("_words", "_table", "_walk"):
        assert all(f"'{name}': " in line for line in lines), lines
