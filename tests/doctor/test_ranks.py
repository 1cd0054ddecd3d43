"""Ranks of one world that differ, and one that hangs: real gloo processes."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from unittest import mock

from tests import tiny
from tests.ranks import free_port, run_ranks
from tests.test_train import finish, start
from upscale.distributed.world import World
from upscale.doctor import devices, versions
from upscale.doctor.base import PROBLEM, Session
from upscale.doctor.examination import Examination

HANGING = """
import os, sys, time
from unittest import mock
from upscale.cli import doctor
from upscale.console import command
from upscale.doctor.versions import Versions

if os.environ["RANK"] == "1":
    mock.patch.object(Versions, "measure", lambda self, session: time.sleep(10_000)).start()
command.run(doctor.main, sys.argv[1:])
"""


def examined(world: World, folder: str, changes: dict[str, object]) -> tuple[dict, str]:
    """The tree and the report of three nodes, on which something differs: n1 has another Triton, n2 a run directory of
    its own, a clock that is fast by a hundred seconds, and a processor that is ten times slower."""
    place, real_flops, real_version, real_time = world.rank, devices.product_flops, versions.version, time.time
    slower, later = (10, 100) if place == 2 else (1, 0)
    directory = Path(folder) / ("own" if place == 2 else "shared")
    patches = [
        mock.patch("platform.node", lambda: f"n{place}"),
        mock.patch.object(devices, "product_flops", lambda *given: real_flops(*given) / slower),
        mock.patch.object(versions, "version", lambda name: "9.9" if place == 1 else real_version(name)),
        mock.patch("upscale.doctor.storage.SECONDS_TO_APPEAR", 1.0),
        mock.patch("upscale.doctor.clocks.time.time", lambda: real_time() + later),
        *(mock.patch.object(versions, name, lambda: f"other {place // 2}") for name in changes),
    ]
    for patch in patches:
        patch.start()
    session = Session.begin(tiny.config(run__dir=directory), world)
    examination = Examination(session)
    examination.run(lambda text: None, lambda: None)
    return examination.as_tree(), examination.report()


def test_what_differs_is_named_with_its_node(tmp_path):
    tree, report = run_ranks(examined, 3, str(tmp_path), {})[0]
    bad = {(one["check"], one["name"], one["node"]) for one in tree["records"] if one["verdict"] == PROBLEM}
    assert bad >= {
        ("versions", "triton", "n1"),
        ("versions", "config", "n2"),
        ("storage", "sees what the others write", "n2"),
        ("clocks", "clock beside the others'", "n2"),
        ("devices", devices.PRODUCT, "n2"),
    }
    assert not [name for check, name, node in bad if node == "n0" and check in ("versions", "clocks", "generator")]
    assert tree["nodes"] == {"n0": [0], "n1": [1], "n2": [2]} and not tree["not_checked"]
    names = {one["name"] for one in tree["records"]}
    assert {
        "all-reduce over all ranks",
        *(f"link between {a} and {b}" for a, b in (("n0", "n2"), ("n1", "n2"))),
    } <= names
    assert len(json.dumps(tree)) and "triton 9.9 on rank 1 (n1): 2 of 3 ranks have" in report
    assert list(tmp_path.iterdir()) == []


def test_ranks_with_other_code_stop_at_that(tmp_path):
    tree, report = run_ranks(examined, 3, str(tmp_path), {"package_digest": None})[0]
    assert ("package files", "n2") in {(one["name"], one["node"]) for one in tree["problems"]}
    assert tree["not_checked"][0] == "limits" and {one["check"] for one in tree["records"]} == {"versions"}
    assert "not checked, since ranks run different code" in report


def test_a_rank_that_hangs_is_named_after_the_time_out(tmp_path):
    port, to = str(free_port()), tmp_path / "doctor.json"
    words = [sys.executable, "-c", HANGING, *tiny.overrides(run__dir=tmp_path / "run"), "--timeout", "20"]
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    first, second = (
        start([*words, "--to", str(to)], server=rank, RANK=str(rank), LOCAL_RANK=str(rank), **place)
        for rank in range(2)
    )
    code, output = finish(first)
    second.kill()
    assert code == 1 and "rank 1 (" in output and "did not answer in the check of versions" in output, output
    (problem,) = json.loads(to.read_text())["problems"]
    assert problem["rank"] == 1 and problem["node"] == os.uname().nodename


def test_the_command_ends_with_the_verdict(tmp_path):
    to = tmp_path / "new" / "doctor.json"
    words = [sys.executable, "-m", "upscale.cli", "doctor", *tiny.overrides(run__dir=tmp_path / "run"), "--to", str(to)]
    code, output = finish(start(words))
    tree = json.loads(to.read_text())
    assert code == (tree["verdict"] == PROBLEM) and "[9/9] generator" in output, output
    code, output = finish(start([*words, "--ranks", "0"]))
    assert code == 2 and "must be at least 1" in output
