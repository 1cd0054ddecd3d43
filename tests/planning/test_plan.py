"""`upscale plan` as a user types it, and the arithmetic of its estimates against hand counts."""

import json
import sys
from pathlib import Path

import pytest

from tests import pace
from upscale import planning
from upscale.cli import plan as plan_command
from upscale.config import files as config_files
from upscale.errors import USER_ERROR_EXIT_CODE, UserError
from upscale.machine.gpus import DEVICES
from upscale.planning.communication import LINK_EFFICIENCY, Cluster, traffic
from upscale.planning.estimate import alternatives, estimate

H200 = DEVICES["h200"]
NETWORK = 50e9


def config(name: str, *overrides: str):
    return config_files.load(f"configs/{name}.yaml", ["engine.precision=bf16", *overrides]).resolved()


@pytest.fixture
def plan(capsys):
    """`upscale plan` in this process: what it prints, or the message of a mistake."""

    def run(*arguments: object, expect: int = 0) -> str:
        try:
            code, message = plan_command.main([str(argument) for argument in arguments]), ""
        except UserError as error:
            code, message = USER_ERROR_EXIT_CODE, str(error)
        except SystemExit as request:
            code, message = request.code, ""
        printed = capsys.readouterr()
        assert code == expect, printed.out + printed.err + message
        return printed.out + printed.err + message

    return run


def test_the_verb_is_there():
    script = Path(sys.executable).parent / "upscale"
    done = pace.run([script, "plan", "--nodes", "0"], 120)
    assert done.returncode == 2 and "'0' is not a whole number above 0" in done.stderr


@pytest.mark.parametrize("name", ["w384", "w1024", "w4096"])
def test_plan_prints_and_writes_every_way(plan, name, tmp_path):
    output = plan("--config", f"configs/{name}.yaml", "--nodes", 2, "--json", tmp_path / "plan.json")
    assert f"{planning.parameters(config(name).model):,} parameters" in output
    assert "40% of 989 TFLOP/s (assumed)" in output and "Fastest by this estimate" in output
    records = json.loads((tmp_path / "plan.json").read_text())["estimates"]
    assert {record["engine"] for record in records} == {
        *(f"deepspeed stage {stage}" for stage in range(4)),
        "fsdp",
        "fsdp, shards of 8",
    }
    assert all(record["gpus"] == 16 for record in records)


def test_what_does_not_fit_is_said_with_what_to_change(plan):
    output = plan("--config", "configs/w4096.yaml", "--device", "a100-40", "--gpus-per-node", 1)
    assert "As written it does not fit" in output and "Nothing fits: give more GPUs" in output
    assert "engine.micro_batch = 64 take" in plan(
        "--config", "configs/w4096.yaml", "engine.micro_batch=64", "--device=a100-40"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", 16], "128 GPUs for data.lanes = 64"),
        (["--nodes", 0], "'0' is not a whole number above 0"),
        (["--utilization", 40], "--utilization 40.0 must be above 0 and at most 1"),
        (["--measured", "nowhere.json"], "--measured nowhere.json cannot be read"),
        (["--network-gigabits", 0], "--network-gigabits 0.0 must be above 0"),
        (["engine.name=fsdp", "engine.shard_ranks=3"], "engine.shard_ranks = 3 does not divide 8 GPUs"),
    ],
)
def test_mistakes_exit_2_with_one_message(plan, arguments, message):
    output = plan("--config", "configs/w1024.yaml", *arguments, expect=2)
    assert message in output


def test_a_measured_utilization_is_used(plan, tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(f'{{"model_flops_utilization": {share}}}\n' for share in (0.1, 0.1, 0.3, 0.32, 0.31)))
    assert "31% of 989 TFLOP/s (measured" in plan("--config", "configs/w384.yaml", "--measured", metrics)
    metrics.write_text('{"model_flops_utilization": null}\n')
    broken = tmp_path / "broken.jsonl"
    broken.write_text("not JSON\n{}\n")
    assert "broken.jsonl cannot be read" in plan("--measured", broken, expect=2)
    assert "holds no model_flops_utilization" in plan("--measured", metrics, expect=2)


def test_scaling_has_every_size(plan):
    output = plan("--config", "configs/w1024.yaml", "--scaling")
    lines = [line.split() for line in output.splitlines() if line.startswith(("strong", "weak"))]
    assert [(line[0], line[1]) for line in lines] == [(k, g) for k in ("strong", "weak") for g in ("8", "64", "512")]


def test_traffic_of_each_engine_by_hand():
    """Ring volumes for 16 ranks on two nodes: b (n - 1) / n a pass of reduce-scatter or gather."""
    cluster = Cluster(2, 8, H200, NETWORK)
    total = planning.parameters(config("w1024").model)
    one_way = 4 * total * 15 / 16
    for stage, passes, volumes in ((0, 3, 2), (1, 3, 3), (2, 3, 7), (3, 3, 4.5)):
        chosen = config("w1024", f"engine.zero_stage={stage}")
        assert traffic(chosen, cluster, passes).sent_bytes == pytest.approx(volumes * one_way)
    for stage, passes, hidden in ((0, 3, 0), (1, 3, 2), (2, 3, 0), (3, 3, 4.5)):
        found = traffic(config("w1024", f"engine.zero_stage={stage}"), cluster, passes)
        assert found.hidden_seconds == pytest.approx(cluster.ring_seconds(hidden * one_way, 16))
    assert traffic(config("w1024", "engine.overlap=false"), cluster, 3).hidden_seconds == 0
    fsdp = config("w1024", "engine.name=fsdp")
    assert traffic(fsdp, cluster, 3).sent_bytes == pytest.approx((6 * 2 + 3 * 4) / 4 * one_way)
    hybrid = traffic(config("w1024", "engine.name=fsdp", "engine.shard_ranks=8"), cluster, 1)
    within, between = total * 7 / 8 * 8, 2 * 4 * total / 8 / 2
    assert hybrid.sent_bytes == pytest.approx(within + between)
    seconds = within / (H200.link_bandwidth * LINK_EFFICIENCY) + between / (NETWORK * LINK_EFFICIENCY)
    assert hybrid.hidden_seconds == pytest.approx(seconds)


def test_rings_use_every_card_of_a_node():
    assert Cluster(1, 8, H200, NETWORK).ring_seconds(1e9, 8) == pytest.approx(1e9 / (450e9 * LINK_EFFICIENCY))
    assert Cluster(2, 8, H200, NETWORK).ring_seconds(1e9, 16) == pytest.approx(1e9 / (400e9 * LINK_EFFICIENCY))
    assert Cluster(2, 1, H200, NETWORK).ring_seconds(1e9, 2) == pytest.approx(1e9 / (50e9 * LINK_EFFICIENCY))
    assert Cluster(1, 1, H200, NETWORK).ring_seconds(1e9, 1) == 0


def test_one_gpu_computes_at_the_assumed_utilization():
    """A large batch on one GPU sends nothing: FLOPs over peak, and the optimizer's 28 bytes a parameter."""
    chosen = config("w384", "engine.micro_batch=64")
    one = estimate(chosen, Cluster(1, 1, H200, NETWORK), 0.4)
    flops = 512 * 512 * planning.flops_per_token(chosen.model, 16)
    optimizer = 28 * planning.parameters(chosen.model) / H200.memory_bandwidth
    assert one.exposed_seconds == 0 and one.passes == 8
    assert one.step_seconds == pytest.approx(flops / (0.4 * H200.peak_flops) + optimizer)


def test_the_fastest_that_fits_comes_first_and_little_gain_does_not_shard():
    found = alternatives(config("w384"), Cluster(1, 8, H200, NETWORK), 0.4)
    assert found[0].config.engine.zero_stage == 0 and found[0].config.engine.name == "deepspeed"
    large = alternatives(config("w4096"), Cluster(1, 8, H200, NETWORK), 0.4)
    assert large[0].config.engine.name == "fsdp" or large[0].config.engine.zero_stage >= 2
    fits = [one.fits for one in large]
    assert fits == sorted(fits, reverse=True) and not all(fits)


def test_uneven_lanes_cost_what_the_busiest_rank_takes():
    """64 lanes over 24 ranks: the busiest has 3 lanes where 2.67 would be even."""
    one = estimate(config("w384"), Cluster(3, 8, H200, NETWORK), 0.4)
    assert one.rows_of_busiest_rank == 24 and one.balance == pytest.approx(512 / (24 * 24))
