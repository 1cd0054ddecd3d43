"""`upscale bench` as a user types it, on tiny models: never how fast, but whether the figures belong together."""

from __future__ import annotations

import copy
import json
import re
import sys

import pytest
import torch

from tests import tiny
from tests.test_train import finish, start
from upscale.bench import compare, plain, tables
from upscale.bench.machine import summary
from upscale.cli import bench as bench_command
from upscale.cli import plan as planning_verb
from upscale.distributed.world import World
from upscale.errors import UserError
from upscale.model import costs, parametrization

QUICK = ["data.sources=[{kind: uniform}]", "--steps", "2", "--warm-up", "1"]


def bench(*arguments: object, expect: int = 0) -> str:
    code, output = finish(start([sys.executable, "-m", "upscale.cli", "bench", *map(str, arguments)]))
    assert code == expect, output
    return output


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict]:
    """One rank beside the baselines, and two ranks with as many rows each."""
    folder = tmp_path_factory.mktemp("bench")
    one, two = folder / "one.json", folder / "two.json"
    shown = bench(*tiny.TINY, *QUICK, "--baseline", "--operators", "--to", one)
    assert "paper's step: times our step" in shown and "MFU not known" in shown and "products alone" in shown
    larger = ["schedule.batch.start=24", "schedule.batch.end=24", "engine.micro_batch=auto", "data.ahead=thread"]
    shown = bench(*tiny.TINY, *larger, *QUICK, "--ranks", 2, "--to", two)
    assert "collectives under way" in shown
    return {"one": json.loads(one.read_text()), "two": json.loads(two.read_text()), "folder": folder}


def test_figures_belong_together(results):
    for name, ranks, batch in (("one", 1, 12), ("two", 2, 24)):
        result = results[name]
        assert (result["world_size"], result["global_batch"], result["rows_per_rank"]) == (ranks, batch, 12)
        step, rate = result["seconds"]["step"], result["tokens_per_second"]
        assert rate["highest"] == pytest.approx(batch * 16 / step["lowest"])
        assert result["tokens_per_second_per_device"]["median"] == pytest.approx(rate["median"] / ranks)
        parts = sum(result["seconds"][part]["lowest"] for part in (*tables.PARTS, "rest"))
        assert 0 < parts <= step["highest"]
        assert result["active_blocks"] == 6 and result["config"]["model"]["width"] == 32 and result["versions"]["torch"]
    assert results["one"]["micro_batch_found_by"] == "given" and results["one"]["micro_batch"] == 2
    assert results["two"]["micro_batch_found_by"] == "planned" and results["two"]["micro_batch"] == 12
    assert results["one"]["communication"] is None and results["two"]["communication"]["under_way_seconds"] > 0
    assert set(results["one"]["beside"]) == {"plain PyTorch", "paper's step"} and not results["two"]["beside"]


def test_operators_make_up_the_step_and_count_its_products(results):
    """Shares sum to one. Linear layers take 6 operations for a number in a matrix and a token, as planning counts."""
    found, result = results["one"]["by_operator"], results["one"]
    assert sum(one["share"] for one in found["operators"]) == pytest.approx(1)
    products = {one["name"]: one for one in found["operators"] if "flops" in one}
    model, tokens = tiny.config().model, result["global_batch"] * 16
    numbers = costs.matrix_parameters(model) + model.vocabulary * model.width
    assert products["aten::mm"]["flops"] + products["aten::addmm"]["flops"] == 6 * numbers * tokens
    alone = sum(one["alone_seconds"] for one in products.values())
    assert found["products_alone_seconds"] == pytest.approx(alone) and results["two"]["by_operator"] is None


def test_results_side_by_side(results):
    """The same rows a rank: ratios. Another model: the figures, no ratio, and why."""
    folder = results["folder"]
    other = copy.deepcopy(results["two"])
    other["config"]["model"]["width"], other["machine"]["cpu"] = 64, "another"
    (folder / "other.json").write_text(json.dumps(other))
    text = compare.side_by_side([folder / f"{name}.json" for name in ("one", "two", "other")])
    line = next(line for line in text.splitlines() if line.startswith("tokens/s a device"))
    assert line.count("x") == 1 and line.count(" to ") == 1
    assert f"{folder}/other.json has another model.width (64, not 32); another machine: cpu (another" in text


def test_ratios_span_from_the_lowest_to_the_highest():
    first, here = summary([2.0, 4.0, 5.0]), summary([6.0, 8.0, 10.0])
    assert compare.ratio(first, here) == "x2.000 (1.200 to 5.000)"


def test_plan_reads_the_file(results, capsys):
    """On a GPU the file holds the utilisation to plan with; this machine's says that it does not."""
    with pytest.raises(UserError, match="holds no model_flops_utilization"):
        planning_verb.main(["--config", "configs/w384.yaml", "--measured", str(results["folder"] / "one.json")])
    measured = {**results["one"], "model_flops_utilization": 0.31, "computing_flops_utilization": 0.35}
    path = results["folder"] / "gpu.json"
    path.write_text(json.dumps(measured))
    assert planning_verb.main(["--config", "configs/w384.yaml", "--measured", str(path)]) == 0
    assert "35% of 989 TFLOP/s (measured" in capsys.readouterr().out
    tables.show({**measured, "peak_flops": 989e12})
    assert "MFU 31.0% of 989 TFLOP/s, 35.0% in forward and backward passes alone" in capsys.readouterr().out


@pytest.mark.parametrize("block", ["paper", "llama", "prenorm"])
def test_the_baselines_compute_what_the_model_computes(block):
    """Attention by products and a softmax against the fused one, causal mask and scale included."""
    config = tiny.config(model__qk_norm="true", model__block=block)
    fused, world = parametrization.build(config), World.single()
    tokens = torch.randint(0, 256, (3, 16))
    for made in (plain.without_engine, plain.paper_step):
        output = made(config, world).logits(tokens, 6)
        torch.testing.assert_close(output, fused(tokens, 6), atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps 0 --warm-up 2 --ranks None: must be at least 1, 0 and 1"),
        (["--baseline", "--ranks", "2"], "measure it with --ranks 1, not 2"),
        (["--ranks", "65"], "65 ranks for data.lanes = 64"),
        (["--compare", "one.json"], "--compare takes two files or more"),
        (["--compare", "pyproject.toml", "README.md"], "--compare pyproject.toml cannot be read"),
        (["--compare", "docs/coordinate_check.json", "README.md"], "is no result of `upscale bench"),
        (["--sources", "--repeats", "0"], "--repeats 0 --width 1024"),
        (["model.width=-1"], "model.width"),
    ],
)
def test_mistakes_are_said(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        bench_command.main(arguments)


def test_a_launchers_world_decides(monkeypatch):
    launched = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1", "LOCAL_RANK": "0"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="--ranks 3, but the launcher started 2"):
        bench_command.main(["--ranks", "3"])
