"""`upscale study FILE`: run a study's members here or on Slurm, and compare its arms or the points of its grid."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from upscale.config import problems
from upscale.console import command
from upscale.errors import UserError
from upscale.study import grid, grid_reporting, loading, reporting, run_slurm, schema
from upscale.study import plan as planning
from upscale.study.grid import GridPlan
from upscale.study.members import Member
from upscale.study.plan import Plan
from upscale.study.run_local import Runner


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser(
        "study", "Run a study: many trainings at an equal budget. The same command again continues it."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="study file, such as configs/studies/nca.yaml")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="train for these arms, or at these points, only")
    parser.add_argument("--dry-run", action="store_true", help="check everything and print what would run")
    parser.add_argument("--report", action="store_true", help="train nothing: compare what has finished")
    parser.add_argument("--slurm", action="store_true", help="submit the trainings as a chain of Slurm jobs")
    parser.add_argument("--ranks", type=int, metavar="N", help="here: ranks; default: one per GPU, or 2 without GPUs")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="folder of the runs; default: the file's")
    parser.add_argument("--to", type=Path, metavar="DIR", help="folder of the results; default: the file's")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="values for all trainings")
    given = sys.argv[2:] if arguments is None else arguments
    options = parser.parse_intermixed_args(given)
    only = None if options.only is None else [word for word in options.only if "=" not in word]
    overrides = options.overrides + [word for word in options.only or [] if "=" in word]
    if options.ranks is not None and options.ranks < 1:
        raise UserError(f"--ranks {options.ranks}: must be at least 1")
    if options.slurm and (options.ranks or options.report):
        raise UserError(
            "--slurm runs one rank per GPU of each job and submits the report itself: leave --ranks and --report out"
        )
    study = loading.load(options.file)
    plan: Plan | GridPlan
    if isinstance(study, schema.Grid):
        _check_names(only, "point", [name for points in study.axes.values() for name in points])
        plan = grid.make(options.file, study, overrides, options.runs, options.to)
    else:
        _check_names(only, "arm", list(study.arms))
        plan = planning.make(options.file, study, overrides, options.runs, options.to)
    members = plan.members(only)
    if options.ranks and (most := min(member.config.data.lanes for member in members)) < options.ranks:
        raise UserError(f"--ranks {options.ranks}: a stage has data.lanes = {most}, and a lane never spans ranks")
    if options.slurm:
        return run_slurm.submit(plan, members, _report_command(given), options.dry_run)
    if options.dry_run:
        print(outline(plan, members))
        return 0
    code = 0 if options.report else Runner(members, options.ranks).run()
    if code in (0, 1):
        report(plan, ["upscale", "study", *given])
    return code


def _check_names(only: list[str] | None, kind: str, names: list[str]) -> None:
    """Raises UserError where `--only` names nothing (None: it was not given), or what is not there."""
    if only == []:
        raise UserError(f"--only names no {kind}; allowed: {', '.join(names)}")
    for name in only or []:
        if name not in names:
            raise UserError(f"--only: no {kind} {name}; {problems.nearest(name, names)}")


def report(plan: Plan | GridPlan, words: Sequence[str]) -> None:
    """Write and print what is known of the members that have finished; say so where that is nothing."""
    try:
        print(grid_reporting.write(plan, words) if isinstance(plan, GridPlan) else reporting.write(plan, words))
    except ValueError as error:  # a damaged line of a run's files
        raise UserError(str(error)) from None


def outline(plan: Plan | GridPlan, members: Sequence[Member]) -> str:
    """What would run, in order, and what arms have in common."""
    lines = []
    for place, member in enumerate(members, 1):
        seen = member.seen()
        state = "finished" if member.finished() else f"at {seen:,}" if seen else "not begun"
        minutes = member.config.run.minutes
        budget = f"{member.instances:,} rows, {member.tokens:,} tokens"
        budget = budget if minutes is None else f"{minutes:g} minutes, at most {member.instances:,} rows"
        lines.append(f"[{place}/{len(members)}] {member.name}: {budget}, {state}")
        lines.append(f"    upscale train {shlex.join(member.arguments)}")
    if isinstance(plan, Plan):
        for metric in plan.study.compare:
            budgets = [f"{arm} {plan.tokens_before(arm, metric.stage):,}" for arm in plan.arms_with(metric.stage)]
            lines.append(f"tokens before {metric.stage}: {', '.join(budgets)}")
    return "\n".join([*lines, f"runs: {plan.folder}; results: {plan.to / plan.study.name}.md, .json, .png"])


def _report_command(given: Sequence[str]) -> list[str]:
    """The command's words for the job that reports: of all arms, whichever were submitted."""
    return ["upscale", "study", *(word for word in given if word not in ("--slurm", "--dry-run")), "--report"]
