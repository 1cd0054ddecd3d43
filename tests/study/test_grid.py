"""Grids: their members and mistakes, what is repeated and what is not, and reports of planted laws."""

from __future__ import annotations

import json
import math
import re
import signal
from pathlib import Path

import numpy
import pytest

from tests.study import planted
from tests.study.planted import SCALING, TRANSFER, parameters
from upscale import planning
from upscale.cli import study as study_command
from upscale.errors import UserError
from upscale.files import read_json_lines
from upscale.study import grid, grid_reporting
from upscale.study import transfer as curves
from upscale.study.members import Member

EXPONENT, IRREDUCIBLE = 0.3, 1.4


def law(member: Member, task: str, seen: float) -> list[float]:
    """`toy`: 1.4 + 1.5 (N / 100 000)^-0.3 at the end, higher before; `bits`: 2 at every size; with some noise."""
    random = numpy.random.default_rng([parameters(member), member.seed])
    noise = random.normal(0, 0.002) + random.normal(0, 0.006, 20)
    reducible = 1.5 * (parameters(member) / 100_000) ** -EXPONENT if task == "toy" else 0.6
    early = 3.0 * (1 - seen / member.instances)
    return (IRREDUCIBLE + reducible + early + noise).tolist()


def problems(folder: Path, tree: dict, overrides: list[str] = (), **changes: object) -> str:
    with pytest.raises(UserError) as raised:
        planned(folder, tree, overrides, **changes)
    return str(raised.value)


planned = planted.planned


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def table(page: str, title: str) -> dict[str, dict[str, str]]:
    """A table of a page in Markdown: the rows by their first cell, the cells by their heads."""
    lines = page[page.index(f"## {title}") :].splitlines()[2:]
    heads, _, *rows = [cells(line) for line in lines[: lines.index("")]]
    return {row[0]: dict(zip(heads, row, strict=True)) for row in rows}


def numbers(text: str) -> list[float]:
    return [float(one.replace(",", "")) for one in re.findall(r"-?\d[\d,]*\.?\d*", text)]


def test_every_combination_is_a_member_whose_name_depends_on_nothing_else(tmp_path):
    found = planned(tmp_path, TRANSFER)
    members = found.members()
    assert len(members) == 2 * 3 * 6 * 2 and len({member.name for member in members}) == len(members)
    assert [member.seed for member in members] == sorted(member.seed for member in members)
    assert members[0].name == "mup.w16.r6-0" and members[0].config.optimizer.learning_rate == 2.0**-6
    assert {member.config.run.seed for member in members} == {0, 1}
    some = found.members(["standard", "w16", "w64"])
    assert len(some) == 2 * 6 * 2 and all(not member.config.mup.enabled for member in some)
    assert {member.config.model.width for member in some} == {16, 64}
    own = {
        "w512": {"config": "{folder}/tiny.yaml", "set": {"model.width": 512}, "script": "x.sh", "slurm": ["--nodes=9"]}
    }
    more = planned(tmp_path, SCALING, axes__width=SCALING["axes"]["width"] | own, slurm={"options": ["--a"]})
    assert {member.name for member in planned(tmp_path, SCALING).members()} < {m.name for m in more.members()}
    assert (more.members()[-1].script, more.members()[-1].slurm) == ("x.sh", ("--a", "--nodes=9"))


@pytest.mark.parametrize(
    ("tree", "changes", "message"),
    [
        (SCALING, {"axes__widht": {"a": {}, "b": {}}, "axes__width": None}, "report: scaling needs an axis width"),
        (TRANSFER, {"axes__rate": None}, "report: transfer needs an axis rate"),
        (SCALING, {"axes__width__w16": {"confg": "x"}}, "axes.width.w16.confg: unknown key; did you mean config?"),
        (SCALING, {"axes__other": {"w16": {}}}, "axes.other.w16: axes.width has a point of this name"),
        (SCALING, {"axes__width": {"w16": {}}}, "axes.width: one point is nothing to compare"),
        (SCALING, {"axes__width": {"a": {}, "b": {}}}, "axes.width: its points have the same width: a 32, b 32"),
        (SCALING, {"config": None, "next": None}, "w16: no config: neither a point nor the grid names one"),
        (SCALING, {"set__run.seed": 3}, "set: run.seed is set by the study itself"),
        (SCALING, {"set__model": {"widht": 3}}, "model.widht: unknown key; did you mean width?"),
        (SCALING, {"next": {"set": {"model.depth": -1}}}, "next: override 'model.depth=-1'"),
        (SCALING, {"next": {"hardware": {"device": "h300"}}}, "next.hardware.device: input should be 'b200'"),
        (SCALING, {"seeds": [1, 1]}, "seeds: [1, 1] names a seed twice"),
        (TRANSFER, {"next": {}}, "a transfer study foretells no width"),
        (SCALING, {"set__evaluation__tasks": ["toi"]}, "did you mean 'toy'?"),
        (
            SCALING,
            {"axes__width__w16": {"set": {"model.width": 16, "schedule.instances": 2400}}},
            "train on unequal numbers of rows: w16 2,400, w32 1,200",
        ),
    ],
)
def test_mistakes_are_found_before_anything_starts(tmp_path, tree, changes, message):
    assert message in problems(tmp_path, tree, **changes)


def test_equal_operations_are_as_many_rows_as_they_pay_for(tmp_path):
    found = planned(tmp_path, SCALING, flops=1e11).members()
    spent = [planning.run_flops(member.config) for member in found]
    assert all(0.99e11 < one <= 1e11 for one in spent), spent
    rows = [member.config.schedule.instances for member in found[:5]]
    assert rows == sorted(rows, reverse=True) and rows[0] > 5 * rows[-1]
    assert all(grid.flops_of(member.config, member.config.schedule.instances + 1) > 1e11 for member in found)


def test_a_grid_grows_and_gains_a_width_without_repeating_anything(tmp_path, capsys):
    """More rows: all are to go on; a new width: it alone is to be trained; fewer rows or another rate: refused."""
    for member in planned(tmp_path, SCALING).members():
        planted.train(member, law)
    arguments = [str(tmp_path / "grid.yaml"), "--runs", str(tmp_path / "runs"), "--dry-run"]
    assert study_command.main(arguments) == 0
    assert capsys.readouterr().out.count(" tokens, finished") == 10
    assert study_command.main([*arguments, "schedule.instances=2400"]) == 0
    assert capsys.readouterr().out.count("2,400 rows, 38,400 tokens, at 1,200") == 10
    own = {"w512": {"set": {"model.width": 512}}}
    planted.write(tmp_path, SCALING, axes__width=SCALING["axes"]["width"] | own)
    assert study_command.main(arguments) == 0
    shown = capsys.readouterr().out
    assert shown.count(" tokens, finished") == 10 and shown.count(" tokens, not begun") == 2
    for override, told in (
        ("schedule.instances=600", "schedule.instances = 1200, now 600"),
        ("optimizer.learning_rate=0.5", "optimizer.learning_rate = 0.01, now 0.5"),
    ):
        with pytest.raises(UserError, match=f"w16-0 has begun with {told}: set that back"):
            study_command.main([*arguments, override])


def test_each_width_has_its_own_job_script_and_options(monkeypatch, capsys):
    monkeypatch.chdir(planted.ROOT)
    arguments = ["configs/studies/scaling.yaml", "--slurm", "--dry-run", "--only", "lstm", "w384", "w4096"]
    assert study_command.main(arguments) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "sbatch" in line]
    assert len(lines) == 2 * 2 + 1
    begin = "sbatch --parsable --job-name="
    assert f"{begin}w384.lstm-0 --nodes=1 slurm/pretrain_w1024.sh --config configs/w384.yaml" in lines[0]
    assert f"{begin}w4096.lstm-0 slurm/pretrain_w4096.sh --config configs/w4096.yaml" in lines[1]
    assert "--report" in lines[-1] and "afterany:$job_1:$job_2:$job_3:$job_4" in lines[-1]


@pytest.fixture(scope="module")
def scaling(tmp_path_factory) -> tuple[Path, str]:
    """The folder of a scaling study with planted laws, and what its report printed."""
    folder = tmp_path_factory.mktemp("scaling")
    plan = planned(folder, SCALING)
    for member in plan.members():
        planted.train(member, law)
    return folder, grid_reporting.write(plan, ["upscale", "study", "grid.yaml"])


def test_planted_laws_are_found_with_their_intervals_and_say_what_comes_next(scaling):
    folder, printed = scaling
    page = (folder / "runs/scaling.md").read_text()
    found = table(page, "laws of the parameters")
    for head, true in (("a", EXPONENT), ("E, bits", IRREDUCIBLE)):
        value, low, high = numbers(found["toy"][head])
        assert low <= true <= high and abs(value - true) < 0.2, (head, found)
    assert found["toy"]["verdict"] == "determined"
    assert found["bits"]["verdict"] == "not determined: the bits do not fall by more than their error"
    assert found["bits"]["a"] == "–"
    plan = planned(folder, SCALING)
    largest = max(plan.members(), key=parameters)
    held, low, high = numbers(found["toy"]["held out: foretold"])
    true = IRREDUCIBLE + 1.5 * (parameters(largest) / 100_000) ** -EXPONENT
    assert low < high and held == pytest.approx(true, abs=0.01)
    assert float(found["toy"]["measured"]) == pytest.approx(true, abs=0.01)
    following = table(page, "the next width, 512")
    size = planning.parameters(plan.next.model)
    foretold, low, high = numbers(following["toy"]["value"])
    assert low < foretold < high
    assert foretold == pytest.approx(IRREDUCIBLE + 1.5 * (size / 100_000) ** -EXPONENT, abs=0.02)
    assert following["bits"]["value"] == "not determined"
    assert numbers(following["parameters"]["value"]) == [size]
    # 100 logged steps of 36 s are an hour of the one rank; the next width takes as much longer as it has operations
    hours = planning.run_flops(plan.next) / planning.run_flops(largest.config)
    assert numbers(following["hours"]["value"])[0] == pytest.approx(hours, abs=0.06)
    assert "laws of the parameters" in printed and "10 of 10 trainings have finished." in printed
    for name in ("rows", "operations", "parameters"):
        assert (folder / f"runs/scaling-{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_tables_are_the_runs_own_numbers(scaling):
    folder, _ = scaling
    page = (folder / "runs/scaling.md").read_text()
    plan = planned(folder, SCALING)
    ends = {}
    for member in plan.members():
        bits = law(member, "toy", member.instances)
        ends.setdefault(member.config.model.width, []).append(sum(bits) / 20)
    shown, gaps = (
        table(page, "bits per character")["toy"],
        table(page, "the gap to the baseline and to the optimum")["toy"],
    )
    for width, seeds in ends.items():
        mean = sum(seeds) / 2
        assert numbers(shown[f"width {width}"]) == pytest.approx([mean, min(seeds), max(seeds)], abs=6e-4)
        assert float(gaps[f"below Markov, width {width}"]) == pytest.approx(3 - mean, abs=6e-4)
        assert float(gaps[f"above optimum, width {width}"]) == pytest.approx(mean - 1, abs=6e-4)
    sizes = table(page, "the widths")
    for member in plan.members()[:5]:
        row = sizes[str(member.config.model.width)]
        assert numbers(row["parameters"]) == [parameters(member)] and row["seeds"] == "2"
        assert float(row["operations"]) == pytest.approx(planning.run_flops(member.config), rel=0.01)
        assert (row["rows"], row["rank hours"]) == ("1,200", "1.00")


def test_the_frontier_is_each_widths_last_point_below_all_cheaper_ones(scaling):
    """Against every pair of evaluations, one by one."""
    folder, _ = scaling
    record = json.loads((folder / "runs/scaling.json").read_text())
    plan = planned(folder, SCALING)
    points = []
    for width in SCALING["axes"]["width"]:
        pair = [plan.cells[(width,), seed] for seed in (0, 1)]
        for seen in range(120, 1201, 120):
            mean = numpy.mean([law(member, "toy", seen) for member in pair])
            points.append((grid.flops_of(pair[0].config, seen), mean, width))
    best = [one for one in points if all(other[1] > one[1] for other in points if other[0] < one[0])]
    last = {width: max(flops for flops, _, name in best if name == width) for _, _, width in best}
    found = {one["width"]: one["flops"] for one in record["series"][""]["tasks"]["toy generated"]["frontier"]}
    assert found == pytest.approx(last) and len(found) >= 3


def test_equal_operations_give_the_best_width_instead_of_a_law(tmp_path):
    """Planted: bits are lowest at 2^16.5 parameters."""
    plan = planned(tmp_path, SCALING, flops=1e11, seeds=[0, 1, 2])
    for member in plan.members():
        level = 2 + 0.1 * (math.log2(parameters(member)) - 16.5) ** 2 + 0.001 * member.seed
        planted.train(member, lambda *_, level=level: [level] * 20)
    grid_reporting.write(plan, ["x"])
    page = (tmp_path / "runs/scaling.md").read_text()
    best = numbers(table(page, "the best width at equal operations")["toy"]["best parameters"])
    assert math.log2(best[0]) == pytest.approx(16.5, abs=0.01) and "## laws" not in page


@pytest.fixture(scope="module")
def transfer(tmp_path_factory) -> tuple[Path, str]:
    """With muP the best rate is 2^-8.2 at every width, without it falls by one for each doubling of the width."""
    folder = tmp_path_factory.mktemp("transfer")
    plan = planned(folder, TRANSFER)

    def loss(member: Member) -> float:
        doublings = math.log2(member.config.model.width / 16)
        best = -8.2 - (0 if member.config.mup.enabled else doublings) + 0.05 * (2 * member.seed - 1)
        return 3 - 0.1 * doublings + 0.1 * (math.log2(member.config.optimizer.learning_rate) - best) ** 2

    for member in plan.members():
        planted.train(member, loss=loss)
    return folder, grid_reporting.write(plan, ["upscale", "study", "grid.yaml"])


def test_shifts_of_the_best_rate_are_the_planted_ones(transfer):
    folder, printed = transfer
    page = (folder / "runs/transfer.md").read_text()
    assert "72 of 72 trainings have finished." in printed
    for recipe, moved in (("mup", (0, 0, 0)), ("standard", (0, -1, -2))):
        found = table(page, recipe)
        for width, by in zip((16, 32, 64), moved, strict=True):
            place, low, high = numbers(found[str(width)]["best log2 rate"])
            assert place == pytest.approx(-8.2 + by, abs=0.02), found
            assert low == pytest.approx(place - 0.05, abs=0.021) and high == pytest.approx(place + 0.05, abs=0.021)
            if width > 16:  # the seeds' own optima cancel in the difference
                assert numbers(found[str(width)]["shift"]) == pytest.approx([by, by, by], abs=0.011)
    # at 64 without muP the best tried rate is 2^-10; at 16 it is 2^-8, which costs 0.1 (2.2^2 - 0.2^2)
    assert float(table(page, "standard")["64"]["paid"]) == pytest.approx(0.1 * (2.2**2 - 0.2**2), abs=2e-3)
    assert (folder / "runs/transfer-rates.png").read_bytes().startswith(b"\x89PNG")


def test_an_optimum_at_the_edge_is_not_said_to_be_one(transfer):
    """Without the two lowest rates the optimum of width 64 without muP is beyond."""
    folder, _ = transfer
    plan = planned(folder, TRANSFER)
    only = {("standard", f"w{width}", f"r{rate}") for width in (16, 32, 64) for rate in (6, 7, 8, 9)}
    smaller = grid.GridPlan(
        plan.study,
        plan.folder,
        plan.to,
        {place: member for place, member in plan.cells.items() if place[0] in only},
        None,
    )
    lines = curves.curves(smaller, {"recipe": "standard"})
    heads, rows = curves._table(lines)
    assert "at the edge" not in rows[0][3] and rows[2][3].endswith("at the edge")
    assert rows[2][4] == "not determined: w64 is at the edge"


def test_nothing_finished_is_nothing_to_report(tmp_path, capsys):
    path = planted.write(tmp_path, SCALING)
    assert study_command.main([str(path), "--report", "--runs", str(tmp_path / "runs")]) == 0
    assert "nothing to report yet" in capsys.readouterr().out
    with pytest.raises(UserError, match="--only: no point w15; did you mean w16?"):
        study_command.main([str(path), "--only", "w15"])


@pytest.mark.slow
def test_a_real_grid_that_grew_is_the_one_that_was_long_from_the_start(tmp_path, capsys, monkeypatch):
    """Trained, reported, then given twice the rows; against one that had them at once: the same evaluations."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP]
    before = [signal.getsignal(number) for number in signals]
    short = {"set__schedule__instances": 144, "set__evaluation": {"every": 144, "slices": 60, "tasks": ["toy"]}}
    widths = {f"w{width}": {"set": {"model.width": width}} for width in (16, 32)}
    path = str(planted.write(tmp_path, SCALING, axes__width=widths, seeds=[0], **short))
    runs, straight = str(tmp_path / "runs"), str(tmp_path / "straight")
    try:
        assert study_command.main([path, "--runs", runs, "--ranks", "1"]) == 0
        first = capsys.readouterr().out
        assert (
            study_command.main([path, "--runs", runs, "--ranks", "1", "--only", "w16", "schedule.instances=288"]) == 0
        )
        grown = capsys.readouterr().out
        assert (
            study_command.main([path, "--runs", straight, "--ranks", "1", "--only", "w16", "schedule.instances=288"])
            == 0
        )
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
    assert "2 of 2 trainings have finished." in first and "fewer than 3 widths" in first
    assert "w16-0: continues at 144 of 288 rows" in grown and "1 of 2 trainings have finished." in grown
    here, there = (list(read_json_lines(Path(folder, "w16-0/evaluations.jsonl"))) for folder in (runs, straight))
    assert [row["instances"] for row in here] == [0, 144, 288]
    assert [row["bits_per_character"] for row in here] == [row["bits_per_character"] for row in there]
