"""What to change when a GPU's memory runs out: settings that fit by the plan, and not a traceback."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch

from upscale import schedule
from upscale.config import AUTO, Config
from upscale.console.text import size
from upscale.errors import UserError
from upscale.planning import memory


@contextlib.contextmanager
def explained(config: Config, device: torch.device, ranks: int) -> Iterator[None]:
    """Turns running out of the GPU's memory inside into a UserError with advice: the same command would run out again.
    `config` is resolved."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        # The error's frames hold what is on the device.
        raise UserError(message(config, device, ranks, str(error))) from None


def message(config: Config, device: torch.device, ranks: int, error: str) -> str:
    """What was asked for, what there is, and the settings to give instead."""
    free, total = torch.cuda.mem_get_info(device)
    others = max(0, total - free - torch.cuda.memory_reserved(device) - memory.CONTEXT_BYTES)
    config = memory.in_bfloat16(config)
    rows = rows_at_once(config, ranks, total)
    states = size(sum(memory.state_bytes(config, ranks).values()))
    lines = [
        f"{device} is out of memory: it has {size(total)}. By the plan this run takes {states} for weights, gradients "
        f"and the optimizer's state, and {size(memory.activation_bytes(config, rows))} for microbatches of "
        f"{rows} {'row' if rows == 1 else 'rows'}."
    ]
    if others > memory.CONTEXT_BYTES:
        lines.append(f"Other processes hold {size(others)} of the memory: see nvidia-smi.")
    lines.append(advice(config, ranks, total - others, rows))
    lines.append(f"PyTorch said: {error.strip().splitlines()[0][:200]}")
    return " ".join(lines)


def rows_at_once(config: Config, ranks: int, memory_bytes: float) -> int:
    """Rows of a microbatch: as given, or what the plan lets a run begin with; at most those of a step."""
    lanes = config.data.lanes
    most = schedule.full_batch_size(config.schedule, lanes) // lanes * math.ceil(lanes / ranks)
    given = config.engine.micro_batch
    return min(most, max(1, memory.largest_micro_batch(config, ranks, memory_bytes)) if given == AUTO else given)


def advice(config: Config, ranks: int, memory_bytes: float, rows: int) -> str:
    """The least change under which the run fits `memory_bytes` a GPU by the plan, where microbatches of `rows` did not
    fit."""
    for changed, settings in ways(config, ranks):
        # Not as many again with the config as it is: the plan may have thought that they fit.
        most = rows * 3 // 4 if changed is config else rows
        if fitting := min(most, memory.largest_micro_batch(changed, ranks, memory_bytes)):
            return f"Give {' '.join([*settings, f'engine.micro_batch={fitting}'])}."
    more = 2 * ranks
    while more <= config.data.lanes:
        *_, (changed, settings) = ways(config, more)
        if memory.largest_micro_batch(changed, more, memory_bytes):
            return f"Start at least {more} ranks, and give {' '.join([*settings, 'engine.micro_batch=auto'])}."
        more *= 2
    return "Nothing fits: it takes GPUs with more memory, or a smaller model.width."


def ways(config: Config, ranks: int) -> Iterator[tuple[Config, list[str]]]:
    """The config as it is, then with ever more that saves memory, each with the settings that make it so."""
    yield config, []
    checkpointing, checkpointed = ["model.checkpointing=full"], config.with_values(model={"checkpointing": "full"})
    if config.model.checkpointing == "full":
        checkpointing = []
    else:
        yield checkpointed, checkpointing
    sharded = {"name": "fsdp", "shard_ranks": AUTO, "reshard": True}
    settings = [
        f"engine.{key}={str(value).lower()}" for key, value in sharded.items() if getattr(config.engine, key) != value
    ]
    if settings:
        yield config.with_values(engine=sharded), settings
        yield checkpointed.with_values(engine=sharded), [*settings, *checkpointing]
