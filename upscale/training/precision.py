"""In which precision a run computes its matrix products: `engine.precision`, and what `auto` becomes.

`auto` is bf16 where every rank's device has bfloat16 instructions, and fp32 elsewhere: without them a bfloat16 product
takes many times as long as a float32 one (twenty times and more on a CPU with AVX2 only). The choice depends on the
machine, so the config's `resolved()` leaves it alone; what a run has chosen stands in its config.yaml, and stays.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from upscale.config import AUTO
from upscale.errors import UserError

if TYPE_CHECKING:
    from upscale.config import Config
    from upscale.distributed.world import World

FIRST_CAPABILITY = (8, 0)
"""Compute capability of the first GPUs with bfloat16 instructions (A100); T4 is 7.5, V100 7.0."""
X86_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "avx10_2")
ARM_INSTRUCTIONS = ("bf16",)
ONEDNN_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Variables that oneDNN reads, the first one that is set."""
LIMITS_WITHOUT = {"sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni"}
"""Their values that switch bfloat16 products off; any other value leaves them on."""
MATRIX_SIZES = {"cpu": 256, "cuda": 2048}
"""Rows of the square matrices that measure the slowdown: 40 ms on a CPU without the instructions."""


@dataclass(frozen=True)
class Choice:
    """A config whose precision is bf16 or fp32, why it is, and what the user should be told beside that."""

    config: Config
    reason: str
    notes: list[str]


def settle(config: Config, world: World, kept: str | None = None) -> Choice:
    """The precision of a run: the same on every rank, which must all call this.

    `kept` is that of the run that is continued. A precision that was given is used as it is, with a warning and the
    measured slowdown where a rank's device has no bfloat16 instructions. Raises UserError, on every rank, where such a
    device cannot compute bfloat16 products at all.
    """
    given: str = config.engine.precision
    lacking = _first_lacking(world)
    here = "bf16" if lacking is None else "fp32"
    why = lacking or ("GPUs have" if world.device.type == "cuda" else "CPU has") + " bfloat16 instructions"
    if given != AUTO:
        chosen, reason = given, "as given"
    elif kept is None:
        chosen, reason = here, why
    else:
        chosen, reason = kept, "kept from the run's start"
    notes = []
    if given == AUTO and chosen != here:
        notes.append(f"engine.precision: the run keeps {chosen}; on this machine auto would have chosen {here}: {why}")
    if chosen == "bf16" and lacking is not None:
        notes.append(_warning(world, lacking))
    engine = config.engine.model_copy(update={"precision": chosen})
    return Choice(config.model_copy(update={"engine": engine}), reason, notes)


def lacking_instructions(device: torch.device) -> str | None:
    """Why bfloat16 products on this device have no instructions of their own; None where they have."""
    if device.type == "cuda":
        return lacking_on_gpu(torch.cuda.get_device_capability(device), torch.cuda.get_device_name(device))
    return lacking_on_cpu(
        torch.cpu.get_capabilities(),
        torch.backends.cpu.get_cpu_capability(),
        os.environ,
        torch.backends.mkldnn.is_available(),
    )


def lacking_on_gpu(capability: tuple[int, int], name: str) -> str | None:
    """As `lacking_instructions`, for a GPU of this compute capability."""
    if capability >= FIRST_CAPABILITY:
        return None
    return f"{name} has no bfloat16 instructions (compute capability {'.'.join(map(str, capability))}, below 8.0)"


def lacking_on_cpu(
    processor: Mapping[str, object], vector_level: str, environment: Mapping[str, str], has_onednn: bool
) -> str | None:
    """As `lacking_instructions`, for a CPU: `processor` as torch.cpu.get_capabilities() describes it.

    oneDNN computes the large products and obeys ONEDNN_MAX_CPU_ISA; torch's own kernels obey ATEN_CPU_CAPABILITY, which
    `vector_level` (torch.backends.cpu.get_cpu_capability()) has in it. Both must have the instructions.
    """
    if not has_onednn:
        return "this torch has no oneDNN, which computes bfloat16 products on a CPU"
    is_arm = processor["architecture"] in ("aarch64", "arm64")
    names = ARM_INSTRUCTIONS if is_arm else X86_INSTRUCTIONS
    if not any(processor.get(name) for name in names):
        return f"CPU without bfloat16 instructions ({', '.join(names)})"
    if is_arm:
        return None
    limit = next((environment[name] for name in ONEDNN_LIMITS if environment.get(name)), "")
    if limit.lower() in LIMITS_WITHOUT:
        return f"CPU's bfloat16 instructions are switched off by ONEDNN_MAX_CPU_ISA={limit}"
    if not vector_level.startswith("AVX512"):
        return f"CPU's bfloat16 instructions are switched off: torch computes with {vector_level} (ATEN_CPU_CAPABILITY)"
    return None


def slowdown(device: torch.device) -> float:
    """How many times as long a bfloat16 product takes as a float32 one here; infinite where there is none."""
    size = MATRIX_SIZES[device.type]
    try:
        short, long = (_product_seconds(size, dtype, device) for dtype in (torch.bfloat16, torch.float32))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # a library that has no such product says so in words of its own
        return math.inf
    return short / long


def _product_seconds(size: int, dtype: torch.dtype, device: torch.device) -> float:
    """The shortest of three products, after one that is not counted."""
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    seconds = []
    for _ in range(4):
        begin = time.perf_counter()
        result = matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
        del result
    return min(seconds[1:])


def _first_lacking(world: World) -> str | None:
    """Why bf16 would be slow on one of the ranks, None if on none: one decision for nodes of several kinds."""
    found = world.gather_objects(lacking_instructions(world.device))
    lacking = {rank: reason for rank, reason in enumerate(found) if reason}
    if not lacking:
        return None
    rank, reason = next(iter(lacking.items()))
    some = f" on {len(lacking)} of {world.size} ranks, the first of them {rank}" if len(lacking) < world.size else ""
    return reason + some


def _warning(world: World, lacking: str) -> str:
    """What bf16 costs on the slowest rank, measured; raises UserError where a rank has no such product at all."""
    measured = slowdown(world.device) if lacking_instructions(world.device) else 0.0
    times = max(world.gather_objects(measured))
    if times == math.inf:
        raise UserError(f"engine.precision=bf16 cannot be computed here: {lacking}. Set engine.precision=fp32.")
    return (
        f"WARNING: engine.precision=bf16, but {lacking}: a bfloat16 product takes {times:.1f} times as long as a "
        "float32 one here. engine.precision=fp32 gives as good a model; a run may change it when it is continued."
    )
