"""What a run tells: a line or a bar on the console, log.txt, metrics.jsonl and evaluations.jsonl, wandb.

metrics.jsonl is the source of truth; the others mirror it. Only rank 0 writes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from upscale.checkpoint import lock
from upscale.checkpoint.layout import EVALUATIONS, METRICS
from upscale.config import Config
from upscale.config.files import as_tree
from upscale.evaluation.record import EvaluationRecord
from upscale.files import append_json_lines, read_json_lines, write_atomically
from upscale.training.record import StepRecord


class _Console(Console):
    """Tells that its reader is gone, where rich's own would end the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Terminal:
    """Standard output that may be a terminal, a file, or closed: a run outlives its reader."""

    def __init__(self, total: int):
        self.console = _Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self.progress: Progress | None = None
        self.open = True
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.percentage:5.1f}%"),
                BarColumn(20),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
            )
            self.progress = Progress(*columns, console=self.console)
            self.task = self.progress.add_task("starting", total=total)
            self.progress.start()

    def line(self, text: str) -> None:
        self._guarded(lambda: self.console.print(text, markup=False, overflow="ignore", crop=False))

    def update(self, done: int, text: str) -> None:
        if self.progress:
            self._guarded(lambda: self.progress.update(self.task, completed=done, description=text))
        else:
            self.line(text)

    def close(self) -> None:
        if self.progress:
            self._guarded(self.progress.stop)

    def _guarded(self, write) -> None:
        if not self.open:
            return
        try:
            write()
            self.console.file.flush()
        except (OSError, ValueError):  # the reader of our output is gone; the files still tell everything
            self.open = False


class Tracker:
    """Writes a run's records; on ranks other than 0 every method does nothing.

    `check` raises UserError where this run may not write any more.
    """

    def __init__(
        self,
        config: Config,
        directory: Path,
        is_main: bool,
        step: int,
        wandb_id: str,
        check: Callable[[], None] = lambda: None,
    ):
        self.check = check
        self.config, self.directory, self.is_main = config, directory, is_main
        self.wandb = None
        if not is_main:
            return
        self._forget_after(step)
        self.log_file = open(directory / "log.txt", "a", encoding="utf-8")  # noqa: SIM115
        self.terminal = Terminal(config.schedule.instances)
        if config.tracking.wandb != "disabled":
            self.wandb = self._start_wandb(wandb_id)

    def _forget_after(self, step: int) -> None:
        """Drop records of steps that a crash undid, so that each step stands in a file once."""
        self._keep(METRICS, lambda record: record["step"] <= step)
        if (self.directory / EVALUATIONS).exists():
            with lock.alone(self.directory, EVALUATIONS):
                self._keep(EVALUATIONS, lambda record: record["step"] <= step)

    def _keep(self, name: str, wanted: Callable[[dict], bool]) -> None:
        """Leave only the wanted records in a file."""
        path = self.directory / name
        if path.exists():
            self.check()
            kept = [record for record in read_json_lines(path) if wanted(record)]
            write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept).encode())

    def _start_wandb(self, run_id: str):
        import wandb

        return wandb.init(
            project="upscale",
            name=self.config.run.name,
            id=run_id,
            resume="allow",
            mode=self.config.tracking.wandb,
            dir=self.directory,
            config=as_tree(self.config),
            settings=wandb.Settings(silent=True, console="off"),
        )

    def note(self, message: str) -> None:
        """One line for the user, on the console and in log.txt."""
        if self.is_main:
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}", file=self.log_file, flush=True)
            self.terminal.line(message)

    def metrics(self, record: StepRecord) -> None:
        """One logged step."""
        if not self.is_main:
            return
        fields = record.as_object()
        self.check()
        with open(self.directory / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(fields) + "\n")
        text = record.console_line(self.config.schedule.instances, self.config.run.steps)
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", file=self.log_file, flush=True)
        self.terminal.update(record.instances, text)
        if self.wandb:
            self.wandb.log({key: value for key, value in fields.items() if value is not None}, step=record.step)

    def evaluations(self, records: list[EvaluationRecord]) -> None:
        """The records of one evaluation, which take the place of what an interrupted one wrote of the same step."""
        if not self.is_main:
            return
        new = {(record.step, record.task, record.split) for record in records}
        with lock.alone(self.directory, EVALUATIONS):  # `upscale evaluate` may add to it meanwhile
            self._keep(EVALUATIONS, lambda old: (old["step"], old["task"], old.get("split")) not in new)
            self.check()
            append_json_lines(self.directory / EVALUATIONS, [record.as_object() for record in records])
        for record in records:
            if self.wandb and record.bits_per_character is not None:
                self.wandb.log({f"bits_per_character/{record.task}": record.bits_per_character}, step=record.step)

    def progress(self, text: str) -> None:
        """What is going on between steps; shown on a terminal only, where it is replaced."""
        if self.is_main and self.terminal.progress:
            self.terminal.progress.update(self.terminal.task, description=text)

    def samples(self, step: int, lines: list[str]) -> None:
        if self.is_main and lines:
            folder = self.directory / "samples"
            folder.mkdir(exist_ok=True)
            write_atomically(folder / f"step-{step:08d}.txt", ("\n".join(lines) + "\n").encode())

    def close(self) -> None:
        if self.is_main:
            self.terminal.close()
            self.log_file.close()
            if self.wandb:
                self.wandb.finish()
