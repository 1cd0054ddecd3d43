"""torchrun and DeepSpeed's own launcher over two nodes, as slurm/README.md writes it, without Slurm."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import ROOT
from tests.test_train import finish, start_fresh
from tests.tiny import TINY

PORT = "29500"
FSDP = "engine.name=fsdp"  # whose ranks start sooner than DeepSpeed's


def training(directory: Path) -> list[str]:
    return ["upscale/train.py", *TINY, f"run.dir={directory}"]


def check(directory: Path, *processes: subprocess.Popen) -> None:
    for code, output in [finish(process) for process in processes]:
        assert code == 0, output
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["world_size"] for row in rows] == [2] * 12


def hostfile(folder: Path) -> str:
    path = folder / "hosts"
    path.write_text("n1 slots=1\nn2 slots=1\n")
    return str(path)


def test_torchrun(cluster: Cluster, tmp_path):
    processes = []
    for rank, node in enumerate(("n1", "n2")):
        words = ["torchrun", "--nnodes=2", f"--node_rank={rank}", "--nproc_per_node=1", "--master_addr=n1"]
        processes.append(
            start_fresh(
                [*cluster.enter(node, ROOT), *words, f"--master_port={PORT}", *training(tmp_path / "run"), FSDP]
            )
        )
    check(tmp_path / "run", *processes)


@pytest.mark.slow
def test_deepspeed_started_on_each_node(cluster: Cluster, tmp_path):
    processes = []
    for rank, node in enumerate(("n1", "n2")):
        words = ["deepspeed", f"--hostfile={hostfile(tmp_path)}", "--no_ssh", f"--node_rank={rank}"]
        words += ["--master_addr=n1", f"--master_port={PORT}"]
        processes.append(start_fresh([*cluster.enter(node, ROOT), *words, *training(tmp_path / "run")]))
    check(tmp_path / "run", *processes)


def test_deepspeed_with_a_hostfile(cluster: Cluster, tmp_path):
    """With the real pdsh; an `ssh` that enters the node's namespaces stands for ssh."""
    if not shutil.which("pdsh"):
        pytest.skip("pdsh not found; on Debian: apt-get install pdsh")
    entries = "\n".join(f'{node}) exec {" ".join(cluster.enter(node))} sh -c "$*" ;;' for node in cluster.nodes)
    ssh = tmp_path / "ssh"
    ssh.write_text(
        f"#!/bin/bash\nuntil [[ $1 != -* ]]; do shift; done\nhost=$1\nshift\ncase $host in\n{entries}\nesac\n"
    )
    ssh.chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:/usr/bin:/bin:/usr/sbin"
    words = ["deepspeed", f"--hostfile={hostfile(tmp_path)}", f"--master_port={PORT}", *training(tmp_path / "run")]
    check(tmp_path / "run", start_fresh(words, PATH=path, PDSH_RCMD_TYPE="ssh", PYTHONPATH=str(ROOT)))
