"""A rank's share of the cores: counted by hand for made-up machines, and for real processes that are confined."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch

from tests.ranks import run_ranks
from tests.test_train import ROOT, environment
from upscale.distributed.world import World
from upscale.machine import cores
from upscale.machine.cores import Allowance


def shares(*everyone: tuple) -> list[int]:
    allowances = [Allowance(machine, frozenset(mine), *rest) for machine, mine, *rest in everyone]
    return [cores.share(allowances, rank) for rank in range(len(allowances))]


def test_ranks_divide_the_cores_they_share_and_keep_those_they_have_alone():
    assert shares(("a", range(8))) == [8]
    assert shares(*[("a", range(8))] * 4) == [2] * 4
    assert shares(*[("a", range(8))] * 3) == [2] * 3
    assert shares(("a", range(4)), ("a", range(4, 8))) == [4, 4]  # as srun --cpu-bind=cores does
    assert shares(("a", range(8)), ("b", range(8))) == [8, 8]
    assert shares(("a", range(8)), ("a", [0, 1])) == [7, 1]
    assert shares(*[("a", [3])] * 5) == [1] * 5


def test_a_quota_is_divided_among_the_ranks_of_a_machine():
    assert shares(("a", range(64), 4.0)) == [4]
    assert shares(("a", range(64), 4.0), ("a", range(64), 4.0)) == [2, 2]
    assert shares(("a", range(64), 0.5)) == [1]


def test_the_quota_is_the_least_of_a_group_and_those_around_it(tmp_path):
    """Files as the kernel writes them, of version 2 and 1."""
    membership = tmp_path / "cgroup"
    membership.write_text("0::/pod/container\n")
    inner = tmp_path / "two/pod/container"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("max 100000\n")
    assert cores.quota(tmp_path / "two", membership) == math.inf
    (inner.parent / "cpu.max").write_text("250000 100000\n")
    assert cores.quota(tmp_path / "two", membership) == 2.5
    membership.write_text("4:cpu,cpuacct:/job\n2:memory:/job\n")
    old = tmp_path / "one/cpu/job"
    old.mkdir(parents=True)
    (old / "cpu.cfs_period_us").write_text("100000\n")
    (old / "cpu.cfs_quota_us").write_text("-1\n")
    assert cores.quota(tmp_path / "one", membership) == math.inf
    (old / "cpu.cfs_quota_us").write_text("300000\n")
    assert cores.quota(tmp_path / "one", membership) == 3.0
    assert cores.quota(tmp_path / "one", tmp_path / "missing") == math.inf


CONFINED = """
import os, sys
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
os.environ.pop("OMP_NUM_THREADS", None)
import torch
from upscale.data import prefetch
from upscale.distributed.world import World
World.join({})
print(torch.get_num_threads(), prefetch.spare_cores(torch.device("cuda")))
os._exit(sys.stdout.flush() or 0)
"""


def test_a_process_confined_to_one_core_gets_one_thread():
    given = {key: value for key, value in environment().items() if key != "OMP_NUM_THREADS"}
    ended = subprocess.run(
        [sys.executable, "-c", CONFINED], cwd=ROOT, env=given, capture_output=True, text=True, timeout=240
    )
    assert ended.stdout.split() == ["1", "1"], ended.stderr


def threads(world: World) -> tuple[int, int]:
    os.environ.pop("OMP_NUM_THREADS", None)
    return cores.of_this_rank(), torch.get_num_threads()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system binds no processes to cores")
def test_ranks_on_one_machine_do_not_use_more_threads_than_there_are_cores():
    """Two real ranks; `tests.ranks` has set one thread, and OMP_NUM_THREADS may stand in the way of another number."""
    available = min(len(os.sched_getaffinity(0)), cores.quota())
    found = run_ranks(threads, 2)
    assert [share for share, _ in found] == [max(1, int(available / 2))] * 2
