"""The first check of a machine with GPUs, in its reduced form on the stand-in for two of them."""

from __future__ import annotations

import json
import os
import sys

from tests.nullgpu import standin


def test_the_first_check_of_a_machine_runs_and_sees_wrong_numbers(tmp_path):
    """By the shipped script, whose environment is stood in for: every figure is there, and the one section fails whose
    numbers nothing computes here."""
    launch, to = tmp_path / "launch", tmp_path / "check.json"
    launch.mkdir()
    (launch / "environment.sh").write_text(f"cd {standin.REPOSITORY}\nmake_environment() {{ :; }}\n")
    script = launch / "gpu_check.sh"
    script.write_bytes((standin.REPOSITORY / "launch/gpu_check.sh").read_bytes())
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    done = standin.run(
        [str(script), "--small", "--minutes", "30", "--only", "kernel", "step", "ranks", "--to", str(to)],
        tmp_path,
        launcher=("bash",),
        timeout_seconds=1800,
        watched=False,
        devices=2,
        PATH=path,
    )
    assert done.code == 1, done.output[-3000:]
    found = json.loads(to.read_text())
    status = {name: section["status"] for name, section in found["sections"].items()}
    assert set(status) == {"kernel", "step w384", "two ranks, deepspeed", "two ranks, fsdp"}
    assert status.pop("kernel") == "failed", found["sections"]["kernel"]
    assert "writes other rows" in found["sections"]["kernel"]["why"]
    assert set(status.values()) == {"passed"}, found["sections"]
    assert found["gpus"] == 2 and found["machine"]["gpu"] == "NVIDIA H200"
    assert {f"{name}, MFU" for name in status} <= set(found["figures"])
    assert found["figures"]["generator w384, 64 lanes, rows/s"] > 0
