"""Running the checks on every rank, and the report: one table for people, one tree for programs."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence

from upscale.config import files as config_files
from upscale.console.text import aligned_table
from upscale.doctor import CHECKS
from upscale.doctor.base import PROBLEM, Record, Session
from upscale.doctor.versions import may_go_on

LONGEST_VALUE = 44


class Examination:
    """All checks of one session. On rank 0 `records` grows check by check, with verdicts."""

    def __init__(self, session: Session):
        self.session = session
        self.records: list[Record] = []
        self.current = CHECKS[0]
        self.skipped: list[str] = []

    def run(self, say: Callable[[str], None], beat: Callable[[], None]) -> None:
        """Run every check on every rank; `beat` is called between them. After ranks that differ in their code no other
        check follows, because they might not even run the same ones."""
        world = self.session.world
        for place, check in enumerate(CHECKS):
            beat()
            self.current, begin = check, time.perf_counter()
            measured = check.measure(self.session)
            if world.size > 1:
                world.store.set(self._done(world.rank), b"1")
            everyone = world.gather_objects(measured)
            judged = (
                check.judge([one for records in everyone for one in records], self.session) if world.is_main else []
            )
            self.records += judged
            say(f"[{place + 1}/{len(CHECKS)}] {check.kind}: {time.perf_counter() - begin:.1f} s{_count(judged)}")
            if place == 0 and not world.broadcast_object(may_go_on(judged)):
                self.skipped = [other.kind for other in CHECKS[1:]]
                return

    def lost(self, silent: Sequence[int]) -> Record:
        """The record of ranks that do not answer in the current check, or that still measure while others wait."""
        nodes, world = self.session.nodes, self.session.world
        if not silent and world.size > 1:
            silent = [rank for rank in range(world.size) if not world.store.check([self._done(rank)])]
        where = ", ".join(f"{rank} ({nodes[rank]})" for rank in silent)
        advice = (
            f"rank {where} did not answer in the check of {self.current.kind}. Look at that node and its GPU "
            "(nvidia-smi, dmesg), and leave it out (sbatch --exclude=NODE)"
        )
        if not silent:
            advice = (
                f"the check of {self.current.kind} took too long, though all ranks answer: give --timeout more seconds"
            )
        first = silent[0] if silent else self.session.world.rank
        return Record(self.current.kind, "answers", first, nodes[first], "no", "", PROBLEM, advice)

    def _done(self, rank: int) -> str:
        return f"doctor/{self.current.kind}/{rank}"

    @property
    def problems(self) -> list[Record]:
        return [one for one in self.records if one.verdict == PROBLEM]

    def report(self) -> str:
        """The table, and a line for each problem with what to do."""
        session = self.session
        title = (
            f"{session.world.size} ranks on {len(session.ranks_of_nodes)} nodes: {', '.join(session.ranks_of_nodes)}"
        )
        lines = [title, "", table(self.records), ""]
        if self.skipped:
            lines.append(f"not checked, since ranks run different code: {', '.join(self.skipped)}")
        problems = problem_lines(self.records)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines += [f"{count}:", *problems] if problems else ["no problems"]
        return "\n".join(lines)

    def as_tree(self) -> dict:
        """Everything that was found, for JSON."""
        return {
            "verdict": PROBLEM if self.problems else "ok",
            "nodes": self.session.ranks_of_nodes,
            "device": self.session.device.type,
            "not_checked": self.skipped,
            "problems": [dataclasses.asdict(one) for one in self.problems],
            "records": [dataclasses.asdict(one) for one in self.records],
            "config": config_files.as_tree(self.session.config),
        }


def table(records: Sequence[Record]) -> str:
    """One line for each thing that was looked at: over all ranks lowest, median and highest, or the commonest value."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for one in records:
        groups.setdefault((one.check, one.name), []).append(one)
    rows = []
    for (check, name), some in groups.items():
        bad = sum(one.verdict == PROBLEM for one in some)
        verdict = (
            "ok" if not bad else PROBLEM.upper() if len(some) == 1 else f"{PROBLEM.upper()} on {bad} of {len(some)}"
        )
        numbers = [one.value for one in some if isinstance(one.value, float)]
        if numbers:
            shown = [_number(value) for value in (min(numbers), statistics.median(numbers), max(numbers))]
            shown = [*shown, some[0].unit] if len(numbers) > 1 else ["", shown[1], "", some[0].unit]
        else:
            (value, count), *others = Counter(str(one.value) for one in some).most_common()
            shown = ["", value[:LONGEST_VALUE], f"{len(some) - count} differ" if others else "", ""]
        rows.append([check, name, verdict, *shown])
    return aligned_table(["check", "what", "verdict", "lowest", "median", "highest", "unit"], rows, words=3)


def problem_lines(records: Sequence[Record]) -> list[str]:
    """One line for each problem; ranks of one node that have the same share it."""
    groups: dict[tuple, list[Record]] = {}
    for one in records:
        if one.verdict == PROBLEM:
            text = one.value if isinstance(one.value, str) else None
            groups.setdefault((one.check, one.name, one.node, text, one.advice), []).append(one)
    lines = []
    for (check, name, node, _, advice), some in groups.items():
        ranks = ", ".join(str(one.rank) for one in some)
        value, unit = some[0].value, some[0].unit
        shown = "" if value is None else f" {_number(value)} {unit}" if isinstance(value, float) else f" {value}"
        lines.append(f"  {check}: {name}{shown.rstrip()} on rank {ranks} ({node}): {advice.rstrip('.')}.")
    return lines


def _number(value: float) -> str:
    """Four digits, or all of a large number."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _count(records: Sequence[Record]) -> str:
    bad = sum(one.verdict == PROBLEM for one in records)
    return f", {bad} problem{'s' * (bad != 1)}" if bad else ""
