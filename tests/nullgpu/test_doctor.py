"""`upscale doctor` on the stand-in for a GPU: it asks what it asks a GPU, and finds that nothing computes."""

from __future__ import annotations

import json

from tests.nullgpu import standin
from upscale.doctor.base import PROBLEM
from upscale.doctor.devices import FROM_DEVICE, MEMORY, PRODUCT, TO_DEVICE


def test_a_gpu_that_computes_nothing_is_found(tmp_path):
    to = tmp_path / "doctor.json"
    words = ["doctor", "--config", "configs/w384.yaml", "--ranks", "1", "--to", str(to), f"run.dir={tmp_path / 'run'}"]
    done = standin.run(words, tmp_path, timeout_seconds=900)
    assert done.code == 1 and "[9/9] generator" in done.output, done.output[-4000:]
    found = {one["name"]: one for one in json.loads(to.read_text())["records"]}
    assert {found[name]["verdict"] for name in (PRODUCT, "random words", "lstm: equal to the reference")} == {PROBLEM}
    for name in ("driver", "CUDA of the driver", "CUDA of torch", "NCCL", "C compiler", MEMORY, TO_DEVICE, FROM_DEVICE):
        assert found[name]["value"], name
    assert found["how sources compute"]["value"] == "fused" and 100 < found["free for a rank"]["value"] < 140
    assert found["rows a pass that fit"]["verdict"] == "ok"
    assert done.reports[0].contexts == [0] and done.reports[0].totals["launches"] > 0
