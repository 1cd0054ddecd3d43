"""The bytes a rank holds under each engine: states and activations.

States are counted from the shapes of the model on the meta device, with the padding each engine adds; tests compare
them with the storages of real engines. Activations (model/costs.py) are what autograd, or the compiler of a compiled
block, saves on a GPU for the backward pass, counted tensor by tensor; tests compare them with autograd's own hooks, and
the sum with the peaks of the allocator (tests/nullgpu).
"""

from __future__ import annotations

import functools
import math

import torch

from upscale import optim
from upscale.config import AUTO, Config, ModelConfig
from upscale.engines import buckets
from upscale.model import blocks, costs, parametrization
from upscale.model.costs import parameters

USABLE_MEMORY = 0.9
"""Share of a device's memory to plan with: the rest is the CUDA context, the allocator's gaps and NCCL's buffers."""
CONTEXT_BYTES = 600 * 2**20
"""What a CUDA context takes of a GPU, about."""
CPU_MICRO_BATCH = 16

# DeepSpeed 0.19.8's defaults, in elements, of what stays gathered at stage 3.
LIVE_PARAMETERS = 1_000_000_000
PERSISTENT_PARAMETER = 100_000
ALIGNMENT = 2


def in_bfloat16(config: Config) -> Config:
    """The config with bf16 for a precision of auto: every GPU that plans know has bfloat16 instructions."""
    return config.with_values(engine={"precision": "bf16"}) if config.engine.precision == AUTO else config


def shard_ranks(config: Config, ranks: int) -> int:
    """Ranks that divide one copy of the sharded states among them."""
    if config.engine.name == "fsdp":
        return ranks if config.engine.shard_ranks == AUTO else config.engine.shard_ranks
    return ranks if config.engine.zero_stage else 1


def state_bytes(config: Config, ranks: int) -> dict[str, int]:
    """Bytes on the rank that holds most, by kind, once every block is awake: weights, master, moments, gradients, and
    the working memory that gathering and reducing take. `config` must be resolved."""
    model = _shapes(config.model)
    if config.engine.name == "fsdp":
        return _fsdp(config, model, shard_ranks(config, ranks))
    return _deepspeed(config, model, ranks)


@functools.lru_cache(maxsize=16)
def _shapes(model: ModelConfig) -> torch.nn.Module:
    """The model without its numbers; kept, because a plan asks for it many times."""
    return parametrization.build(Config(model=model), "meta")


def _states(config: Config) -> list[tuple[torch.Size, int, int]]:
    """Shape, number of states and number of matrices of every parameter under the config's optimizer."""
    model, kind = _shapes(config.model), optim.KINDS[config.optimizer.kind]
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    groups = optim.parameter_groups(model, config)
    return [(shapes[name], len(kind.states(g.matrices)), g.matrices) for g in groups for name in g.names]


def state_numbers(config: Config) -> int:
    """Numbers in the optimizer's states, over all parameters."""
    return sum(count * shape.numel() for shape, count, _ in _states(config))


def optimizer_flops(config: Config) -> float:
    """Floating-point operations of matrix products in the optimizer's step, which every rank computes in full."""
    kind = optim.KINDS[config.optimizer.kind]
    return sum(kind.step_flops(shape, matrices, config) for shape, _, matrices in _states(config))


def _fsdp(config: Config, model: torch.nn.Module, shards: int) -> dict[str, int]:
    shares = [(4 * math.ceil(shape[0] / shards) * math.prod(shape[1:]), count) for shape, count, _ in _states(config)]
    held, moments = sum(share for share, _ in shares), sum(share * count for share, count in shares)
    gathered = 2 if config.engine.in_bfloat16 else 4
    block = max(sum(parameter.numel() for parameter in part.parameters()) for part in model.blocks)
    total = parameters(config.model)
    root = total - sum(parameter.numel() for part in model.blocks for parameter in part.parameters())
    # One block computes while the next ones are gathered; two blocks' gradients are reduced from float32 buffers.
    ahead = config.engine.prefetch_blocks
    whole = total if not config.engine.reshard else min(total, (1 + ahead) * block + root)
    return {
        "weights": held,
        "master": 0,
        "moments": moments,
        "gradients": held,
        "working": gathered * whole + 4 * min(total, 2 * block + root) if shards > 1 else 0,
    }


def _deepspeed(config: Config, model: torch.nn.Module, ranks: int) -> dict[str, int]:
    stage = buckets.stage(config, ranks)
    # A bucket, a second one that fills while the first travels, and the flat copy in which one travels.
    reducing = (2 + buckets.overlaps(config)) * buckets.reduced_at_once(config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    total = sum(sizes.values())
    if stage == 0:
        moments = 4 * state_numbers(config)
        return {"weights": 4 * total, "master": 0, "moments": moments, "gradients": 4 * total, "working": 0}
    if stage == 3:
        share = sum(math.ceil(size / ranks) for size in sizes.values())
        # Small parameters stay gathered; a single rank's shard of them is the whole.
        persistent = sum(size for size in sizes.values() if size < PERSISTENT_PARAMETER) if ranks > 1 else 0
        live = min(total, LIVE_PARAMETERS) + min(total, buckets.gathered_ahead(config))
        return {
            "weights": 4 * (share + persistent),
            "master": 4 * share,
            "moments": 8 * share,
            "gradients": 4 * share,
            "working": 4 * (reducing + live),
        }
    step = ALIGNMENT * ranks
    groups = optim.parameter_groups(model, config)
    padded = sum(math.ceil(sum(sizes[name] for name in group.names) / step) * step for group in groups)
    return {
        "weights": 4 * padded,
        "master": 4 * padded // ranks,
        "moments": 8 * padded // ranks,
        "gradients": 4 * (padded if stage == 1 else padded // ranks),
        "working": 4 * reducing,
    }


def compiled(config: Config) -> bool:
    """Whether blocks are compiled on a GPU: ZeRO 3's hooks would break every graph."""
    if config.model.compile == AUTO:
        return (config.engine.name, config.engine.zero_stage) != ("deepspeed", 3)
    return config.model.compile


def activation_bytes(config: Config, rows: int) -> float:
    """The peak of what a microbatch of `rows` needs on a GPU besides the states, all blocks awake.

    FSDP2 gathers matrices as bfloat16 already, so autograd saves no copies of them.
    """
    model = config.model
    taken = costs.activation_bytes(model, rows, config.engine.precision, compiled(config))
    if config.engine.name == "fsdp" and config.engine.in_bfloat16:
        copied = 1 if model.checkpointing == "full" else model.depth
        taken -= copied * 2 * blocks.KINDS[model.block].matrix_parameters(model)
    return taken


def peak_bytes(config: Config, ranks: int, rows: int, passes: int) -> float:
    """Bytes on the rank that holds most, at the peak of a step of so many microbatches of `rows`.

    In a step's only microbatch gradients come where activations go.
    """
    states, activations = state_bytes(config, ranks), activation_bytes(config, rows)
    if passes > 1:
        return sum(states.values()) + activations
    return sum(states.values()) - states["gradients"] + max(activations, states["gradients"])


def largest_micro_batch(config: Config, ranks: int, memory_bytes: float) -> int:
    """Rows a pass can hold on a device of `memory_bytes`; 0 when the states alone do not leave room for one."""
    room = memory_bytes * USABLE_MEMORY - sum(state_bytes(config, ranks).values())
    one, two = (activation_bytes(config, rows) for rows in (1, 2))
    rows = 0 if one > room else 1 + int((room - one) // (two - one))
    return rows if rows < 8 else rows // 8 * 8


def micro_batch(config: Config, device: torch.device, largest: int, ranks: int) -> int:
    """Rows per pass: as configured, or what the estimate says fits this machine's device, at most `largest`."""
    if config.engine.micro_batch != AUTO:
        return min(config.engine.micro_batch, largest)
    if device.type == "cpu":
        return min(CPU_MICRO_BATCH, largest)
    free, _ = torch.cuda.mem_get_info(device)
    # The engine already holds part of the states that the estimate counts.
    return max(1, min(largest_micro_batch(config, ranks, free + torch.cuda.memory_allocated(device)), largest))


def largest_inference_batch(config: Config, free_bytes: float) -> int:
    """Rows that a forward pass without gradients has room for in `free_bytes` beside the weights; 0 for none.

    One block's tensors at a time: never more than it would save for a backward pass, its input and its output.
    """
    width, positions = config.model.width, config.model.context

    def taken(rows: int) -> float:
        block = blocks.KINDS[config.model.block].saved_bytes(config.model, rows, config.engine.precision)
        return block + rows * positions * 8 * width

    room, one, two = free_bytes * USABLE_MEMORY, taken(1), taken(2)
    return 0 if one > room else 1 + int((room - one) // (two - one))


def inference_batch(config: Config, device: torch.device, largest: int) -> int:
    """Rows a forward pass without gradients, when the weights are on the device and nothing else: as configured, or
    what fits, at most `largest`."""
    if config.engine.micro_batch != AUTO:
        return min(config.engine.micro_batch, largest)
    if device.type == "cpu":
        return min(CPU_MICRO_BATCH, largest)
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(1, min(largest_inference_batch(config, free + unused), largest))
