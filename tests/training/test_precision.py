"""`engine.precision: auto`: what it becomes on which device, on ranks that differ, and when a run is continued."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.ranks import run_ranks
from tests.test_train import environment
from upscale import train as program
from upscale.checkpoint import run_directory
from upscale.checkpoint.export import export
from upscale.cli import plan as planning_verb
from upscale.config import Config
from upscale.config import files as config_files
from upscale.data import training_rows
from upscale.distributed.world import World
from upscale.errors import UserError
from upscale.launch import signals
from upscale.model import parametrization
from upscale.training import precision

ROOT = Path(__file__).parents[2]
OLD_CPU = {"architecture": "x86_64", "avx2": True, "avx512_f": False, "avx512_bf16": False, "amx_bf16": False}
NEW_CPU = {**OLD_CPU, "avx512_f": True, "avx512_bf16": True}
AMX_CPU = {**OLD_CPU, "avx512_f": True, "amx_bf16": True}
WITHOUT = "a device without bfloat16 instructions"


@pytest.mark.parametrize(
    ("processor", "level", "variables", "expected"),
    [
        (OLD_CPU, "AVX2", {}, "without bfloat16 instructions"),
        ({**OLD_CPU, "avx512_f": True}, "AVX512", {}, "without bfloat16 instructions"),
        (OLD_CPU, "AVX2", {"ONEDNN_MAX_CPU_ISA": "ALL"}, "without bfloat16 instructions"),
        (NEW_CPU, "AVX512", {}, None),
        (AMX_CPU, "AVX512", {}, None),
        (NEW_CPU, "AVX512", {"ONEDNN_MAX_CPU_ISA": "avx512_core_bf16"}, None),
        (NEW_CPU, "AVX512", {"ONEDNN_MAX_CPU_ISA": ""}, None),
        (NEW_CPU, "AVX512", {"ONEDNN_MAX_CPU_ISA": "AVX2"}, "switched off by ONEDNN_MAX_CPU_ISA=AVX2"),
        (AMX_CPU, "AVX512", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}, "switched off by ONEDNN_MAX_CPU_ISA"),
        (NEW_CPU, "AVX2", {"ATEN_CPU_CAPABILITY": "avx2"}, "computes with AVX2 (ATEN_CPU_CAPABILITY)"),
        (NEW_CPU, "DEFAULT", {"ATEN_CPU_CAPABILITY": "default"}, "computes with DEFAULT"),
        ({"architecture": "aarch64", "bf16": True}, "DEFAULT", {}, None),
        ({"architecture": "aarch64", "bf16": False}, "DEFAULT", {}, "without bfloat16 instructions"),
    ],
)
def test_cpus_with_and_without_the_instructions(processor, level, variables, expected):
    """Against what oneDNN's documentation says of each instruction set."""
    found = precision.lacking_on_cpu(processor, level, variables, has_onednn=True)
    assert (found is None) if expected is None else (expected in found)
    assert "no oneDNN" in precision.lacking_on_cpu(processor, level, variables, has_onednn=False)


@pytest.mark.parametrize("limit", ["", "AVX2"])
def test_the_check_says_of_this_cpu_what_onednn_does(limit):
    """Against the instruction set that oneDNN itself reports, as it is and limited to AVX2."""
    code = (
        "import torch; from upscale.training import precision\n"
        "torch.nn.functional.conv2d(torch.ones(4, 32, 32, 32), torch.ones(32, 32, 3, 3))\n"
        "print('lacking', precision.lacking_instructions(torch.device('cpu')))"
    )
    variables = environment(PYTHONPATH=str(ROOT), ONEDNN_VERBOSE="1", ONEDNN_MAX_CPU_ISA=limit)
    variables.pop("ATEN_CPU_CAPABILITY", None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, env=variables)
    lines = done.stdout.splitlines()
    [reported] = [line for line in lines if "onednn_verbose" in line and "cpu,isa:" in line]
    [lacking] = [line.removeprefix("lacking ") for line in lines if line.startswith("lacking ")]
    assert (lacking == "None") == ("bfloat16" in reported), done.stdout
    assert limit == "" or lacking != "None"


@pytest.mark.parametrize(
    ("capability", "name", "has"),
    [((7, 0), "Tesla V100", False), ((7, 5), "Tesla T4", False), ((8, 0), "A100", True), ((9, 0), "H100", True)],
)
def test_gpus_by_their_compute_capability(monkeypatch, capability, name, has):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    world = World.single("cuda:0")
    chosen = precision.settle(tiny.config(engine__precision="auto"), world)
    assert chosen.config.engine.precision == ("bf16" if has else "fp32")
    assert chosen.reason == "GPUs have bfloat16 instructions" if has else f"{name} has no bfloat16" in chosen.reason
    monkeypatch.setattr(precision, "slowdown", lambda device: 7.25)
    [*warnings] = precision.settle(tiny.config(engine__precision="bf16"), world).notes
    assert bool(warnings) != has and all("7.2 times" in text and name in text for text in warnings)


def decisions(world: World) -> dict[str, precision.Choice]:
    """Of two ranks only the second lacks the instructions, then none, then the second cannot compute products."""
    configs = {name: tiny.config(engine__precision=name) for name in ("auto", "bf16", "fp32")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "lacking_instructions", lambda device: WITHOUT if world.rank == 1 else None)
        patch.setattr(precision, "slowdown", lambda device: 20.0 + world.rank)
        found = {name: precision.settle(config, world) for name, config in configs.items()}
        found["kept bf16"] = precision.settle(configs["auto"], world, "bf16")
        found["kept fp32"] = precision.settle(configs["auto"], world, "fp32")
        patch.setattr(precision, "slowdown", lambda device: math.inf)
        with pytest.raises(UserError, match=f"bf16 cannot be computed here: {WITHOUT} on 1 of 2 ranks"):
            precision.settle(configs["bf16"], world)
        patch.setattr(precision, "lacking_instructions", lambda device: None)
        found["all have"] = precision.settle(configs["auto"], world)
        found["all have, kept fp32"] = precision.settle(configs["auto"], world, "fp32")
    return found


def test_ranks_that_differ_decide_together():
    """One rank without the instructions decides for all; a warning names it and its own measurement."""
    first, second = run_ranks(decisions, 2)
    assert first == second
    chosen = {name: choice.config.engine.precision for name, choice in first.items()}
    assert chosen == {
        **{"auto": "fp32", "bf16": "bf16", "fp32": "fp32", "kept bf16": "bf16", "kept fp32": "fp32"},
        **{"all have": "bf16", "all have, kept fp32": "fp32"},
    }
    where = f"{WITHOUT} on 1 of 2 ranks, the first of them 1"
    assert first["auto"].reason == where and not first["auto"].notes
    [warning] = first["bf16"].notes
    assert f"WARNING: engine.precision=bf16, but {where}" in warning and "21.0 times" in warning
    assert not first["fp32"].notes and not first["kept fp32"].notes and not first["all have"].notes
    note, warning = first["kept bf16"].notes
    assert "keeps bf16; on this machine auto would have chosen fp32" in note and "21.0 times" in warning
    [note] = first["all have, kept fp32"].notes
    assert "keeps fp32; on this machine auto would have chosen bf16: CPU has" in note


def trained(world: World, folder: Path) -> None:
    """Begun with the instructions and continued without, with a config of bf16 first and of auto later, and begun
    without; then exported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "lacking_instructions", lambda device: None)
        _train(world, folder / "moved", 1)
        _train(world, folder / "old", 1, engine__precision="bf16")
        patch.setattr(precision, "lacking_instructions", lambda device: WITHOUT)
        _train(world, folder / "moved", 2)
        _train(world, folder / "old", 2)
        _train(world, folder / "without", 1)
    config = run_directory.read_config(folder / "moved")
    export(folder / "moved", config, None, folder / "moved.safetensors")


def _train(world: World, directory: Path, steps: int, **changes: object) -> None:
    changes = {"engine__name": "fsdp", "engine__precision": "auto", **changes}
    config = tiny.config(run__dir=directory, run__steps=steps, data__sources="[{kind: uniform}]", **changes)
    program.Trainer(config, world, [], training_rows.open_rows(config), None, signals.StopRequest()).run()


def test_a_run_keeps_its_precision_where_it_is_continued(tmp_path):
    """Also one whose config named it, as all did before there was auto."""
    run_ranks(trained, 1, tmp_path)
    logs = {name: (tmp_path / name / "log.txt").read_text() for name in ("moved", "old", "without")}
    begun, *rest = logs["moved"].splitlines()
    assert "bf16 (CPU has bfloat16 instructions)" in begun
    assert any("bf16 (kept from the run's start)" in line for line in rest)
    assert "bf16 (as given)" in logs["old"].splitlines()[0]
    for name in ("moved", "old"):
        assert "keeps bf16; on this machine auto would have chosen fp32: " + WITHOUT in logs[name]
        assert "times as long as a float32 one" in logs[name]
        assert "changed since the last start: engine" not in logs[name]
        assert run_directory.read_config(tmp_path / name).engine.precision == "bf16"
    assert f"fp32 ({WITHOUT})" in logs["without"].splitlines()[0] and "WARNING" not in logs["without"]
    assert run_directory.read_config(tmp_path / "without").engine.precision == "fp32"
    from upscale.checkpoint.export import load

    assert load(tmp_path / "moved.safetensors").bf16


def test_a_machine_made_without_them_by_variables_trains_in_float32(tmp_path):
    """As a user starts it, on any CPU: the first line says which precision and why."""
    command = [sys.executable, "upscale/train.py", *tiny.overrides(run__dir=tmp_path / "run", engine__name="fsdp")]
    command += ["engine.precision=auto", "run.steps=1", "data.sources=[{kind: uniform}]"]
    variables = environment(ONEDNN_MAX_CPU_ISA="AVX2", ATEN_CPU_CAPABILITY="avx2")
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=variables, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    first = (tmp_path / "run/log.txt").read_text().splitlines()[0]
    assert "fp32 (CPU" in first and "bfloat16 instructions" in first


def test_auto_is_the_default_and_every_shipped_configs():
    assert Config().engine.precision == "auto"
    shipped = [path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "studies"]
    assert len(shipped) > 20
    others = {path.stem: found for path in shipped if (found := config_files.load(path).engine.precision) != "auto"}
    assert others == {"dyck_balanced_paper": "fp32"}  # what a paper trained in float32, as it did


def test_nothing_is_computed_or_counted_before_it_is_settled():
    """Silently it would be float32; shapes alone need no precision."""
    config = tiny.config(engine__precision="auto")
    with pytest.raises(LookupError, match="engine.precision is auto"):
        parametrization.build(config)
    assert parametrization.build(config, "meta")


def test_a_plan_counts_with_what_the_named_device_would_choose(tmp_path, capsys):
    """All devices that can be named have the instructions: the same figures as for bf16, not those for fp32."""
    figures = {}
    for name in ("auto", "bf16", "fp32"):
        path = tmp_path / f"{name}.json"
        planning_verb.main(["--config", "configs/w384.yaml", f"engine.precision={name}", "--json", str(path)])
        figures[name] = json.loads(path.read_text())["estimates"]
    assert figures["auto"] == figures["bf16"] != figures["fp32"]
    assert ", bf16, checkpointing" in capsys.readouterr().out


def test_the_slowdown_is_a_ratio_of_two_measurements(monkeypatch, one_thread):
    """Against times given by hand; where a library has no bfloat16 product it is infinite."""
    seconds = {torch.bfloat16: 0.5, torch.float32: 0.025}
    monkeypatch.setattr(precision, "_product_seconds", lambda size, dtype, device: seconds[dtype])
    assert precision.slowdown(torch.device("cpu")) == pytest.approx(20)
    monkeypatch.undo()
    assert 0 < precision.slowdown(torch.device("cpu")) < math.inf

    def refuse(size, dtype, device):
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")

    monkeypatch.setattr(precision, "_product_seconds", refuse)
    assert precision.slowdown(torch.device("cpu")) == math.inf
