"""The record of a logged step: what metrics.jsonl holds, and the console line, wandb and reports show."""

from __future__ import annotations

from pathlib import Path

from upscale.console.text import duration
from upscale.files import Record, read_records


class StepRecord(Record):
    """One logged step: the last step's loss, and means since the logged step before it.

    The three fields without a default are in every file; the others are None in files from before they were known. A
    field's docstring is its line in docs/architecture.md, and its unit is in its name.
    """

    step: int
    """optimizer steps so far, skipped ones included"""
    instances: int
    """rows seen so far"""
    tokens: int | None = None
    """rows seen times the context"""
    loss_bits_per_byte: float | None
    """this step's loss, mean over the global batch; null where not finite"""
    learning_rate: float | None = None
    """the base rate times the schedule's factor, before muP's factors"""
    global_batch: int | None = None
    """rows in this step"""
    active_blocks: int | None = None
    """blocks that took part"""
    grad_norm: float | None = None
    """global norm of the gradient before clipping; null where the step was skipped"""
    step_seconds: float | None = None
    """mean since the last logged step"""
    generate_seconds: float | None = None
    """of this, waiting for rows; the slowest rank"""
    draw_seconds: float | None = None
    """what drawing the rows took, also when it did not block"""
    checkpoint_blocking_seconds: float | None = None
    """waiting for saves since the last logged step"""
    tokens_per_second: float | None = None
    """of all ranks"""
    tokens_per_second_per_device: float | None = None
    """of one rank"""
    model_flops_utilization: float | None = None
    """share of the device's peak; null where the peak is not known"""
    peak_memory_gib: float | None = None
    """of the rank with most"""
    world_size: int | None = None
    """ranks"""
    skipped_steps: int | None = None
    """steps so far whose update is not in the weights"""
    spikes: int | None = None
    """loss spikes so far"""
    loss_bits_per_source: dict[str, float | None] | None = None
    """of this step, by the source of a row: its kind (and its place, where several share it); null where not finite"""
    excess_bits_per_source: dict[str, float | None] | None = None
    """of these, those whose optimum is known, less it: how much of a source is not learnt"""
    attention_logit_maximum: float | None = None
    """with `tracking.stability`: the largest scaled product of a query and an earlier key, over ranks and a few rows"""
    attention_logit_maximum_per_block: list[float] | None = None
    """with `tracking.stability`: the same of each active block"""
    activation_rms: float | None = None
    """with `tracking.stability`: root mean square of what leaves a block, the largest of the active blocks"""
    activation_rms_per_block: list[float] | None = None
    """with `tracking.stability`: the same of each active block"""
    update_ratio_maximum: float | None = None
    """with `tracking.stability`: root mean square of the update over that of the weights, the worst matrix's"""
    update_ratio_per_part: dict[str, float] | None = None
    """with `tracking.stability`: the same of each part of the model, its matrices taken together"""
    log_partition_rms: float | None = None
    """with `tracking.stability`: root mean square of log sum exp of the output logits"""
    gates: list[float] | None = None
    """with `tracking.stability`: gates of the active progressive blocks"""

    @property
    def generate_share(self) -> float | None:
        """The share of the step that was spent waiting for rows; None where it is not known."""
        if self.generate_seconds is None or not self.step_seconds:
            return None
        return self.generate_seconds / self.step_seconds

    @property
    def rows_per_second(self) -> float | None:
        """Rows a second since the last logged step; None where it is not known."""
        return self.global_batch / self.step_seconds if self.global_batch and self.step_seconds else None

    @property
    def loss_text(self) -> str:
        return "not finite" if self.loss_bits_per_byte is None else f"{self.loss_bits_per_byte:.4f} bits/byte"

    def seconds_left(self, instances: int, steps: int | None = None) -> float | None:
        """Until a run of so many instances, and at most so many steps, ends at this speed; None where it is not
        known."""
        left = max(0, instances - self.instances)
        if steps is not None:
            left = min(left, max(0, steps - self.step) * (self.global_batch or 0))
        return left / self.rows_per_second if self.rows_per_second else None

    def time_left_text(self, instances: int, steps: int | None = None) -> str:
        seconds = self.seconds_left(instances, steps)
        return "unknown" if seconds is None else duration(seconds)

    def console_line(self, instances: int, steps: int | None = None) -> str:
        """The step on one line, of fixed width while numbers keep their size, in a run that ends after so many
        instances or steps."""
        share, mfu = self.generate_share or 0.0, self.model_flops_utilization
        parts = [
            f"step {self.step:>7,}",
            f"{self.instances:>11,}/{instances:,} rows",
            f"loss {self.loss_text}",
            f"lr {self.learning_rate:.2e}",
            f"batch {self.global_batch:>4}",
            f"blocks {self.active_blocks:>2}",
            f"{self.tokens_per_second:>9,.0f} tokens/s",
            f"generating {100 * share:4.1f} %",
            *([f"MFU {100 * mfu:4.1f} %"] if mfu is not None else []),
            *([f"skipped {self.skipped_steps}"] if self.skipped_steps else []),
            f"ETA {self.time_left_text(instances, steps)}",
        ]
        return "  ".join(parts)


def read_steps(path: Path) -> list[StepRecord]:
    """The logged steps of a metrics.jsonl, steps rising; none where the file is missing.

    Of a step that a restart repeated, the later line counts. A last line without its end is left out: the run may be
    writing it. Raises ValueError naming file, line and field of any other damage, which would bend the curves.
    """
    kept: list[StepRecord] = []
    for record in read_records(path, StepRecord):
        while kept and kept[-1].step >= record.step:
            kept.pop()
        kept.append(record)
    return kept
