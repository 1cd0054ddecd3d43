"""`sbatch slurm/doctor.sh` on three nodes, of which one has another library and one computes slowly."""

from __future__ import annotations

import json

from tests.tiny import TINY
from upscale.doctor.base import PROBLEM
from upscale.doctor.devices import MEMORY, PRODUCT

# CONTAINER puts words before each rank's command, as a site's container would. MKL_CBWR is MKL's own variable: products
# then use no vector instructions beyond SSE2. And the slow node's rank shares one core with four loops: so one of its
# speeds is far below the others' whatever else the machine under all nodes does.
NODE = """#!/bin/bash
case $(hostname) in
n2) export PYTHONPATH=$(dirname "$0")/other:$PYTHONPATH ;;
n3)
    core=$(taskset -cp $$ | sed 's/.*[ ,-]//')
    for _ in 1 2 3 4; do taskset -c "$core" timeout 120 sh -c 'while :; do :; done' >/dev/null 2>&1 & done
    export MKL_CBWR=COMPATIBLE
    set -- taskset -c "$core" "$@"
    ;;
esac
exec "$@"
"""


def test_the_slow_node_and_the_other_version_are_named(real_clone):
    other = real_clone.folder / "other" / "triton-9.9.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: triton\nVersion: 9.9.9\n")
    node = real_clone.folder / "node.sh"
    node.write_text(NODE)
    node.chmod(0o755)
    (real_clone.folder / "slurm" / "site.env").write_text(f"CONTAINER=({node})\n")
    job = real_clone.submit(
        "--nodes=3", "slurm/doctor.sh", *TINY, "run.name=d", "--timeout", "300", LAUNCH_RANKS_PER_NODE="1"
    )
    found = real_clone.finish(job, "FAILED")
    log = real_clone.log(job)
    assert found["ExitCode"] == "1:0", log
    tree = json.loads((real_clone.folder / f"doctor-{job}.json").read_text())
    assert tree["nodes"] == {"n1": [0], "n2": [1], "n3": [2]}
    bad = {(one["name"], one["node"]) for one in tree["records"] if one["verdict"] == PROBLEM}
    assert ("triton", "n2") in bad, log
    assert {(PRODUCT, "n3"), (MEMORY, "n3")} & bad, log
    assert "triton 9.9.9 on rank 1 (n2)" in log and "[9/9] generator" in log
    assert not (real_clone.folder / "runs").exists()


def test_a_node_that_does_not_answer_is_named(clone, cluster):
    (clone.folder / "slurm" / "site.env").write_text("NODE_CHECK='[ \"$(hostname)\" != n2 ]'\n")
    job = clone.submit("--nodes=2", "slurm/doctor.sh", *TINY, LAUNCH_RANKS_PER_NODE="1")
    clone.finish(job, "FAILED")
    assert "n2: no answer" in clone.log(job) and "doctor --to" in clone.log(job)
