"""Each check in this process, on a machine in order and on one that lacks something."""

from __future__ import annotations

import json
import resource
import socket
from pathlib import Path

import torch

from tests import tiny
from upscale.distributed.world import World
from upscale.doctor import devices, generator, limits, ports, storage, versions
from upscale.doctor.base import PROBLEM, Record, Session
from upscale.doctor.examination import Examination
from upscale.doctor.memory import Memory
from upscale.planning import memory, parameters
from upscale.sources.recurrent import LSTMSource


def session(folder: Path, **changes: object) -> Session:
    return Session.begin(tiny.config(run__dir=folder / "runs" / "a", **changes), World.single())


def problems(found: list[Record]) -> dict[str, str]:
    return {one.name: one.advice for one in found if one.verdict == PROBLEM}


def test_a_machine_in_order_has_no_problems_and_keeps_no_traces(tmp_path, one_thread):
    examination = Examination(session(tmp_path))
    said: list[str] = []
    examination.run(said.append, lambda: None)
    assert not examination.problems, examination.report()
    assert "no problems" in examination.report() and len(said) == 9
    tree = json.loads(json.dumps(examination.as_tree()))
    assert tree["verdict"] == "ok" and set(tree["records"][0]) >= {"name", "rank", "value", "unit", "verdict", "advice"}
    found = {one["name"]: one["value"] for one in tree["records"]}
    for name in (devices.PRODUCT, devices.MEMORY, storage.WRITE, storage.READ, "free space"):
        assert found[name] > 0, name
    assert found["torch"] == torch.__version__ and found["zlib"] and found["random words"] == "right"
    assert list(tmp_path.iterdir()) == []


def test_a_run_directory_that_was_there_stays(tmp_path):
    directory = tmp_path / "runs" / "a"
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text("run: {}\n")
    assert not problems(storage.Storage().measure(session(tmp_path)))
    assert [path.name for path in directory.iterdir()] == ["config.yaml"]


def test_a_run_directory_that_cannot_be_is_named(tmp_path):
    (tmp_path / "runs").write_text("a file")
    found = storage.Storage().measure(session(tmp_path))
    assert "run.dir=FOLDER" in problems(found)["run directory"] and len(found) == 1


def test_too_little_space_for_the_checkpoints_is_named(tmp_path, monkeypatch):
    here = session(tmp_path, checkpoint__keep=2, checkpoint__milestones=72)
    numbers = parameters(here.config.model) + memory.state_numbers(here.config)
    needed = storage.needed_bytes(here.config)
    assert needed == 4 * numbers * (2 + 1 + 144 // 72)
    usage = storage.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    assert "checkpoint.keep" in problems(storage.Storage().measure(here))["free space"]


def test_few_open_files_are_named(tmp_path, monkeypatch):
    real = resource.getrlimit

    def few(which: int) -> tuple[int, int]:
        return (100, 4096) if which == resource.RLIMIT_NOFILE else real(which)

    monkeypatch.setattr(limits.resource, "getrlimit", few)
    assert "ulimit -n 264" in problems(limits.Limits().measure(session(tmp_path)))["open files"]


def test_a_model_that_does_not_fit_is_named(tmp_path):
    big = session(tmp_path, model__width=32768, model__heads=8, model__depth=100)
    assert "leave room for 0 rows" in problems(Memory().measure(big))["rows a pass that fit"]
    many = session(tmp_path, engine__micro_batch=10**9)
    assert "engine.micro_batch asks for 1000000000" in problems(Memory().measure(many))["rows a pass that fit"]


def test_more_ranks_than_lanes_are_named(tmp_path):
    here = session(tmp_path, data__lanes=12)
    here.world.size = 13
    assert "at most 12 ranks" in problems(Memory().measure(Session(here.config, here.world, ["n"] * 13)))["data.lanes"]


def test_a_port_that_nobody_listens_on_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert ports.refusal("n1", "127.0.0.1", port) is None
    assert f"n1 (127.0.0.1:{port}" in ports.refusal("n1", "127.0.0.1", port)


def test_a_product_that_is_wrong_in_one_number_is_found(monkeypatch):
    assert devices.product_is_right(torch.device("cpu"), torch.float32)
    assert devices.product_is_right(torch.device("cpu"), torch.bfloat16)
    real = torch.Tensor.__matmul__

    def wrong(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        product = real(left, right)
        if product.is_floating_point():
            product[3, 7] += 1
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", wrong)
    assert not devices.product_is_right(torch.device("cpu"), torch.float32)


def test_a_source_that_writes_other_rows_is_found(tmp_path, monkeypatch):
    here = session(tmp_path, data__sources="[{kind: lstm, seed_tokens: 3}]")
    assert not problems(generator.Generator().measure(here))
    real = LSTMSource.write

    def wrong(self, *arguments):
        rows = real(self, *arguments)
        return rows if self.eager else rows + 1

    monkeypatch.setattr(LSTMSource, "write", wrong)
    assert (
        "of the first tokens are the reference's"
        in problems(generator.Generator().measure(here))["lstm: equal to the reference"]
    )


def test_wrong_random_words_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(generator, "philox", lambda counter, key: (torch.zeros(1),) * 4)
    assert "random words" in problems(generator.Generator().measure(session(tmp_path)))


def test_the_package_digest_tells_a_changed_file(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    for name in ("__init__.py", "inner/code.py", "inner/notes.txt"):
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(versions.upscale, "__file__", str(tmp_path / "__init__.py"))
    digest = versions.package_digest.__wrapped__
    before = digest()
    (tmp_path / "inner" / "notes.txt").write_text("2")
    assert digest() == before
    (tmp_path / "inner" / "code.py").write_text("2")
    assert digest() != before
