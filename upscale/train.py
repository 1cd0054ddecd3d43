"""The one training entry: `upscale train`, `python`, `torchrun`, `deepspeed` and `srun` all start this file.

`main` reads the command and joins the world; `Trainer.run` is the loop.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Started as a file: find the package itself, and not the files beside this one as top-level modules.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from upscale.launch import signals

    signals.leave_quietly()
    signals.remember_stop_requests()
    signals.stop_with_supervisor()

import math
import os
from collections.abc import Callable

import torch

from upscale import engines, planning, schedule
from upscale.checkpoint import run_directory, warm_start
from upscale.checkpoint.manager import Saver
from upscale.config import Config
from upscale.config import files as config_files
from upscale.console import command
from upscale.data import lanes, prefetch, training_rows
from upscale.data.sample import printable
from upscale.distributed import flight_recorder
from upscale.distributed.placement import placement
from upscale.distributed.watchdog import Watchdog
from upscale.distributed.world import World
from upscale.engines import buckets
from upscale.errors import STOPPED_EXIT_CODE, RunError, UserError
from upscale.evaluation import overlap, suite
from upscale.evaluation.compression import Interrupted
from upscale.evaluation.record import EvaluationRecord
from upscale.evaluation.table import summary
from upscale.launch import signals
from upscale.machine import accelerator, compiler
from upscale.machine.timing import Stopwatch, peak_memory_gib
from upscale.planning import out_of_memory
from upscale.sources.tokens import ids
from upscale.training import precision, train_step
from upscale.training.clock import Clock
from upscale.training.logger import Tracker
from upscale.training.profiler import Profiler
from upscale.training.record import StepRecord
from upscale.training.source_losses import SourceLosses
from upscale.training.spikes import SpikeGuard
from upscale.training.stability import Observer
from upscale.training.updates import UpdateRatios


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser("train", "Train the model of a config; the same command again continues the run.")
    command.add_config(parser)
    parser.add_argument("--local_rank", "--local-rank", type=int, help="given by launchers; the environment decides")
    options = parser.parse_intermixed_args(arguments)
    config = config_files.load(options.config, options.overrides).resolved()
    device_type = accelerator.device_type()
    ranks, most = placement(os.environ).size, config.data.lanes
    if ranks > most:
        raise UserError(
            f"{ranks} ranks for data.lanes = {most}, but a lane never spans ranks. Start at most {most} ranks, or "
            f"begin a new run with data.lanes={ranks} or more."
        )
    rows, initial = training_rows.open_rows(config), warm_start.wanted(config)
    if config.evaluation.every:
        overlap.check_tokens(config)
    datasets = (
        suite.datasets(config.evaluation.tasks, data_dir=config.evaluation.data_dir) if config.evaluation.every else []
    )
    stop = signals.StopRequest()
    compiler.check_kernel_compiler(device_type)
    timeout_seconds, directory = config.engine.timeout_seconds, Path(config.run.dir)
    os.environ.update(flight_recorder.variables(os.environ, device_type, directory, timeout_seconds))
    world = World.join(timeout_seconds=timeout_seconds)
    try:
        with out_of_memory.explained(config, world.device, world.size):
            trainer = Trainer(config, world, datasets, rows, initial, stop)
            with trainer.watchdog:
                code = trainer.run()
        command.finish_together(world)
    except RuntimeError as error:  # what torch raises when a collective fails
        if not (silent := world.silent_ranks()):
            raise
        raise RunError(f"{trainer.lost(silent)} ({str(error).strip().splitlines()[0][:200]})") from None
    return code


class Trainer:
    """Everything a run is made of, and the loop over it."""

    def __init__(
        self,
        config: Config,
        world: World,
        datasets: list,
        rows: Callable[..., training_rows.Rows],
        initial: warm_start.Initialization | None,
        stop: signals.StopRequest,
    ):
        chosen = precision.settle(config, world, run_directory.kept_precision(config, world))
        config, self.why_precision = chosen.config, chosen.reason
        self.config, self.world, self.datasets, self.stop = config, world, datasets, stop
        self.directory, self.lock, notes = run_directory.open_directory(config, world)
        still_ours = self.lock.check if self.lock else lambda: None
        if world.device.type == "cuda":
            (self.directory / flight_recorder.FOLDER).mkdir(exist_ok=True)
        model, self.engine = train_step.build(config, world, initialized=False)  # by self.saver.resume
        self.observer = Observer(model) if config.tracking.stability else None
        self.updates = UpdateRatios(config, self.engine) if config.tracking.stability else None
        owned = lanes.owned_lanes(config.data.lanes, world.rank, world.size)
        self.lanes = prefetch.prefetched(config, rows, owned, world.device)
        self.micro_batch = train_step.micro_batch(config, world)
        self.microbatches = train_step.Microbatches(config, world, self.engine, self.lanes.lanes[0], self.micro_batch)
        self.peak_flops = planning.peak_flops(world.device)
        self.saver = Saver(config, self.directory, world, self.engine, self.lanes, still_ours)
        self.counters, more_notes = self.saver.resume(initial)
        self.clock, self.skipped_in_a_row = Clock(config.run.minutes, world, self.counters), 0
        self.spike_guard = SpikeGuard(config.optimizer.spike, world, self.saver)
        self.tracker = Tracker(
            config, self.directory, world.is_main, self.counters.step, self.counters.wandb_id, still_ours
        )
        self.generating = Stopwatch(world.device)
        self.profiler = Profiler(config.tracking.profile, self.directory, world)
        self.watchdog = Watchdog(config.engine.timeout_seconds, lambda: self.lost(world.silent_ranks()))
        overlaps = overlap.overlaps(config, datasets) if world.is_main and self.counters.step == 0 else []
        _, why_workers = prefetch.way(config, world.device)
        more_notes = [*more_notes, why_workers] if why_workers else more_notes
        for note in [self.introduction(), *chosen.notes, *notes, *more_notes, *overlaps]:
            self.tracker.note(note)

    def lost(self, silent: list[int]) -> str:
        """What to tell the user when other ranks do not answer any more."""
        ranks = (
            f"rank {', '.join(map(str, silent))} died or hangs"
            if silent
            else "all ranks still answer, but none goes on"
        )
        message = f"rank {self.world.rank}: {ranks}; the last step here was {self.counters.step}"
        if self.world.device.type == "cuda" and (path := flight_recorder.dump(self.directory, self.world.rank)):
            message += f"; its last collectives are in {path}, for `torchfrtrace`"
        return message

    def introduction(self) -> str:
        config, world, model = self.config, self.world, self.config.model
        stage = f" stage {buckets.stage(config, world.size)}" if config.engine.name == "deepspeed" else ""
        engine = config.engine.name + stage
        first, rounded = config.schedule.batch.start, schedule.batch_size(0, config.schedule, config.data.lanes)
        rounding = "" if first == rounded else f", batches rounded up to a multiple of them ({first} to {rounded})"
        return (
            f"{config.run.name}: width {model.width}, {model.depth} blocks, {planning.parameters(model):,} parameters; "
            f"{world.size} {'rank' if world.size == 1 else 'ranks'} on {world.device.type}, by {world.launcher}; "
            f"{engine}, {config.engine.precision} ({self.why_precision}), "
            f"micro-batches of {self.micro_batch}; {config.data.lanes} lanes{rounding}; run directory {self.directory}"
        )

    def run(self) -> int:
        """Train to the end of the schedule or to a request to stop; returns the exit code."""
        owed = self.counters.evaluation_owed
        if owed or self.counters.step == 0:
            if not self.evaluate():
                return self.close(self.reason_to_stop(), STOPPED_EXIT_CODE)
            if self.counters.step and (failure := self.saver.settle_evaluation(self.counters)):
                self.tracker.note(f"WARNING: a later start will do this evaluation again: {failure}")
        if self.finished():
            return self.close("finished" if owed else "finished before: nothing left to do", 0)
        while True:
            seen = self.counters.instances
            self.clock.begin_step()
            self.watchdog.beat()
            self.profiler.begin(self.counters.step + 1)

            batch = schedule.batch_size(seen, self.config.schedule, self.config.data.lanes)
            active = schedule.active_blocks(seen, self.config.schedule, self.config.model)
            with self.generating.running():
                rows = self.lanes.draw(batch // self.config.data.lanes, self.following_rows_per_lane(seen + batch))
            logged = (self.counters.step + 1) % self.config.tracking.log_every == 0 or self.is_last(seen + batch)
            losses = SourceLosses(self.config, self.lanes.origins()) if logged else None
            loss = self.microbatches.backpropagate(
                rows,
                batch,
                active,
                self.counters.step,
                lambda share: self.spike_guard.judge(share, self.counters.recent_losses),
                losses,
            )
            if losses and self.updates:
                self.updates.remember()
            stop = self.world.any_later(self.stop.signal is not None)  # answered while the step is taken
            report = self.engine.step(
                schedule.learning_rate_factor(seen, self.config.schedule),
                schedule.awake_groups(seen, self.config.schedule),
            )
            self.counters.step, self.counters.instances = self.counters.step + 1, seen + batch
            self.count_skipped(report)
            rolled_back = self.settle_spike(report)

            stopping, finished = stop(), self.finished()
            if losses:
                bits, per_source = losses.reduce(loss, self.world)  # waits for the device
                observed = {**per_source, **self.observe(rows, active)}
                self.clock.end_step()
                self.log(bits, report, batch, active, observed)
            else:
                self.clock.end_step()
            if note := self.profiler.end(self.counters.step, leaving=stopping or finished):
                self.tracker.note(note)
            if finished or schedule.crossed(seen, self.counters.instances, self.config.evaluation.every):
                self.counters.evaluation_owed = True
                stopping = stopping or not self.evaluate()
                self.tracker.samples(self.counters.step, printable(rows[: self.config.tracking.samples]))
            if stopping or finished or rolled_back or self.saver.due(seen, self.counters):
                self.save(seen)
            if stopping:
                return self.close(self.reason_to_stop(), STOPPED_EXIT_CODE)
            if finished:
                return self.close("finished", 0)

    def following_rows_per_lane(self, seen: int) -> int | None:
        """What the step after the one under way will draw, when it will have seen so many instances; None: no step."""
        batch = schedule.batch_size(seen, self.config.schedule, self.config.data.lanes)
        return None if self.is_last(seen) else batch // self.config.data.lanes

    def is_last(self, seen: int) -> bool:
        """Whether the step under way, after which so many instances will have been seen, is the run's last."""
        last = self.counters.step + 1 == self.config.run.steps or self.clock.is_over
        return last or seen >= self.config.schedule.instances

    def reason_to_stop(self) -> str:
        return f"stopped by {self.stop.signal or 'a signal to another rank'}"

    def finished(self) -> bool:
        limit = self.config.run.steps
        done = (limit is not None and self.counters.step >= limit) or self.clock.is_over
        return done or self.counters.instances >= self.config.schedule.instances

    def count_skipped(self, report: engines.StepReport) -> None:
        if report.applied:
            self.skipped_in_a_row = 0
            return
        self.skipped_in_a_row += 1
        self.counters.skipped_steps += 1
        reason = self.spike_guard.reason() or "loss or gradient is not finite"
        self.tracker.note(f"step {self.counters.step}: {reason}, step skipped on every rank")
        if self.skipped_in_a_row > self.config.optimizer.max_skipped_steps:
            raise RunError(
                f"{self.skipped_in_a_row} steps in a row were skipped, the last because its {reason}; more than "
                f"optimizer.max_skipped_steps = {self.config.optimizer.max_skipped_steps}. Lower "
                "optimizer.learning_rate or set engine.precision=fp32, and start again from the newest checkpoint."
            )

    def settle_spike(self, report: engines.StepReport) -> bool:
        """Whether the weights were rolled back, so that a checkpoint must make it last."""
        self.watchdog.beat()
        rolled_back, notes = self.spike_guard.settle(report.applied, self.counters)
        for note in notes:
            self.tracker.note(note)
        return rolled_back

    def observe(self, rows: torch.Tensor, active: int) -> dict:
        """What `tracking.stability` adds to a logged step, of the model after the step."""
        if not (self.observer and self.updates):
            return {}
        self.engine.train_mode(False)
        seen = self.observer.observe(self.engine.logits, ids(rows), active, self.world)
        return {**seen, **self.updates.ratios(self.world)}

    def log(self, bits: float, report: engines.StepReport, batch: int, active: int, observed: dict) -> None:
        """Record the last step's loss, and the mean speed since the last logged step."""
        model, seen = self.config.model, self.counters.instances
        seconds, steps = self.clock.take()
        step_seconds = seconds / steps
        tokens_per_second = batch * model.context / step_seconds
        per_device = tokens_per_second / self.world.size
        flops_per_second = planning.flops_per_token(model, active) * per_device
        factor = schedule.learning_rate_factor(seen - batch, self.config.schedule)
        generate_seconds, draw_seconds, peak = self.world.all_reduce_maxima(
            [self.generating.take(), self.lanes.take_seconds(), peak_memory_gib(self.world.device)]
        )
        record = StepRecord(
            step=self.counters.step,
            instances=seen,
            tokens=seen * model.context,
            loss_bits_per_byte=bits if math.isfinite(bits) else None,
            learning_rate=self.config.optimizer.learning_rate * factor,
            global_batch=batch,
            active_blocks=active,
            grad_norm=report.gradient_norm if report.applied else None,
            step_seconds=step_seconds,
            generate_seconds=generate_seconds / steps,
            draw_seconds=draw_seconds / steps,
            checkpoint_blocking_seconds=self.saver.take_blocking_seconds(),
            tokens_per_second=tokens_per_second,
            tokens_per_second_per_device=per_device,
            model_flops_utilization=flops_per_second / self.peak_flops if self.peak_flops else None,
            peak_memory_gib=peak,
            world_size=self.world.size,
            skipped_steps=self.counters.skipped_steps,
            spikes=len(self.counters.spikes),
            **observed,
        )
        self.tracker.metrics(record)

    @torch.no_grad()
    def evaluate(self) -> bool:
        """Measure the model as it is on every task; the records go to evaluations.jsonl.

        False when a request to stop came before the end: the evaluation is owed until it is done.
        """
        self.counters.evaluation_owed = bool(self.datasets)
        if not self.datasets:
            return True
        active = schedule.active_blocks(self.counters.instances, self.config.schedule, self.config.model)
        self.engine.train_mode(False)
        try:
            records = suite.evaluate(
                lambda tokens: self.engine.logits(tokens, active, last_only=True)[:, 0],
                self.datasets,
                slices=self.config.evaluation.slices,
                context=self.config.model.context,
                world=self.world,
                batch_rows=self.micro_batch,
                progress=self.evaluation_progress,
                requested=lambda: self.stop.signal is not None,
            )
        except Interrupted:
            self.tracker.note(
                f"the evaluation of step {self.counters.step} was interrupted; the next start begins with it"
            )
            return False
        step, seen = self.counters.step, self.counters.instances
        self.tracker.evaluations([EvaluationRecord(step=step, instances=seen, **record) for record in records])
        self.tracker.note(f"bits per character at {seen:,} instances: {summary(records)}")
        self.counters.evaluation_owed = False
        return True

    def evaluation_progress(self, done: int, total: int, label: str) -> None:
        self.watchdog.beat()
        self.tracker.progress(f"evaluating {label} {done}/{total}")

    def save(self, seen: int) -> None:
        if failure := self.saver.save(seen, self.counters):
            self.tracker.note(f"WARNING: the checkpoint of an earlier step could not be written: {failure}")

    def close(self, reason: str, code: int) -> int:
        """Wait for the last save and say where everything is."""
        failure = self.saver.wait()
        self.lanes.close()
        self.tracker.note(
            f"{reason} at step {self.counters.step:,}, {self.counters.instances:,} instances. "
            f"Run directory: {self.directory}"
        )
        if self.lock:
            self.lock.release()
        if failure:
            raise RunError(f"the last checkpoint could not be written: {failure}. Older ones are untouched.")
        self.tracker.close()
        return code


if __name__ == "__main__":
    command.run(main)
