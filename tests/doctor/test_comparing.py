"""What rank 0 makes of the records of all ranks: against the median, against the most, pair by pair."""

from __future__ import annotations

import itertools

import pytest

from upscale.doctor.base import OK, PROBLEM, Record, flag_slow, flag_unequal
from upscale.doctor.examination import problem_lines, table
from upscale.doctor.links import BETWEEN, judge_pairs, rounds


def records(*values: float | str | None, name: str = "speed") -> list[Record]:
    return [Record("devices", name, rank, f"n{rank}", value, "GB/s") for rank, value in enumerate(values)]


def bad(found: list[Record]) -> list[int]:
    return [one.rank for one in found if one.verdict == PROBLEM]


@pytest.mark.parametrize(
    "values, slow",
    [
        ((10.0, 10.1, 9.9, 4.0), [3]),
        ((10.0, 4.0), [1]),
        ((4.0, 10.0, 4.2), []),  # the median is a slow one: the fast one is no fault
        ((10.0, 9.0, 9.5), []),
        ((10.0,), []),
        ((None, 10.0, 10.0, 2.0), [3]),
    ],
)
def test_slow_ones_are_those_far_below_the_median(values, slow):
    found = flag_slow(records(*values), ["speed"], "cpu", "Do this")
    assert bad(found) == slow
    assert all("of the median" in one.advice and "Do this" in one.advice for one in found if one.verdict == PROBLEM)


def test_a_gpu_is_slow_sooner_than_a_cpu():
    values = records(10.0, 10.0, 8.0)
    assert bad(flag_slow(values, ["speed"], "cuda", "")) == [2] and not bad(flag_slow(values, ["speed"], "cpu", ""))


def test_unequal_ones_are_the_fewer():
    found = flag_unequal(records("3.1", "3.1", "3.0", "3.1"), {"speed": "Make it equal"})
    assert bad(found) == [2] and found[2].advice == "3 of 4 ranks have 3.1. Make it equal"
    assert not bad(flag_unequal(records("3.1", "3.1"), {"speed": ""}))
    assert not bad(flag_unequal(records("3.1", "3.0"), {"other": ""}))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9])
def test_rounds_pair_every_node_with_others_and_none_twice(count):
    nodes = [f"n{index}" for index in range(count)]
    found = rounds(nodes)
    pairs = [frozenset(pair) for pair in itertools.chain(*found)]
    assert len(set(pairs)) == len(pairs) and all(len(pair) == 2 for pair in pairs)
    for one in found:
        assert len(set(itertools.chain(*one))) == 2 * len(one), "a node is in one pair at a time"
    if count <= 4:
        assert len(pairs) == count * (count - 1) // 2
    assert all(any(node in pair for pair in pairs) for node in nodes) or count == 1


def pairs(**rates: float) -> list[Record]:
    """n1n2=5.0 is the link between n1 and n2."""
    named = {f"{BETWEEN} {key[:2]} and {key[2:]}": rate for key, rate in rates.items()}
    return [Record("links", name, 0, "n1", rate, "GB/s") for name, rate in named.items()]


def test_a_slow_node_is_told_from_a_slow_link():
    nodes = ["n1", "n2", "n3"]
    found = judge_pairs(pairs(n1n2=5.0, n1n3=1.0, n2n3=1.1), nodes, 0.5)
    assert [one.verdict for one in found] == [OK, PROBLEM, PROBLEM]
    assert all("node n3 is slow with every partner" in one.advice for one in found[1:])
    found = judge_pairs(pairs(n1n2=5.0, n1n3=1.0, n2n3=5.1), nodes, 0.5)
    assert [one.verdict for one in found] == [OK, PROBLEM, OK] and "this link is slow" in found[1].advice
    assert not bad(judge_pairs(pairs(n1n2=5.0, n1n3=4.0, n2n3=4.1), nodes, 0.5))
    assert not bad(judge_pairs(pairs(n1n2=5.0), nodes[:2], 0.5)), "one link alone has no median"


def test_large_numbers_are_written_out():
    assert table(records(20_000.0, 0.123456)).splitlines()[1].split()[-4:] == ["0.1235", "10,000", "20,000", "GB/s"]


def test_the_table_has_one_line_a_thing_and_the_lines_say_what_to_do():
    mixed = [*flag_slow(records(10.0, 9.0, 2.0), ["speed"], "cpu", "Look."), *records("a", "b", "a", name="version")]
    lines = table(mixed).splitlines()
    assert len(lines) == 3
    assert lines[1].split() == "devices speed PROBLEM on 1 of 3 2 9 10 GB/s".split()
    assert lines[2].split() == "devices version ok a 1 differ".split()
    (line,) = problem_lines(mixed)
    assert line == "  devices: speed 2 GB/s on rank 2 (n2): 22% of the median, 9 GB/s. Look."
