"""How much DeepSpeed moves at a time, chosen for the model: what its engine is given and what a plan counts with.

DeepSpeed's own default, 500 million numbers, is a buffer of 2 GB on every GPU, at stages 1 and 2 as at stage 3, for a
model of width 384 that has 29 million parameters. A block at a time keeps the messages large (64 MB at least, where a
ring has reached its bandwidth) and lets the first one leave early; w 384 to 1024 then take 64 MB, w 2048 201 MB, w 4096
805 MB. Two further settings are left as they are. `allgather_bucket_size` is not read where torch can gather into one
tensor. `stage3_param_persistence_threshold`, 100 000 numbers, keeps every vector of a model up to w 4096 gathered (the
longest has 4 w) and from w 384 up no matrix.
"""

from __future__ import annotations

from upscale.config import AUTO, Config
from upscale.errors import UserError
from upscale.model.costs import block_parameters, parameters

SMALLEST_BUCKET = 1 << 24


def stage(config: Config, ranks: int) -> int:
    """The ZeRO stage that runs. One rank has nothing to share: there stages 1 and 2 would only copy every weight and
    gradient into flat buffers and back, so stage 0 does the same without."""
    return 0 if ranks == 1 and config.engine.zero_stage < 3 else config.engine.zero_stage


def overlaps(config: Config) -> bool:
    """Whether DeepSpeed reduces gradients, and at stage 3 gathers weights, beside the computation, on another stream.

    `auto` is at stages 1 and 3. Stage 2 would make the host wait for the GPU in every backward pass, and it frees a
    gradient larger than the bucket on one stream while the other still reduces it. Raises UserError where that is asked
    for.
    """
    engine = config.engine
    if engine.overlap == AUTO:
        return engine.zero_stage in (1, 3)
    safe = engine.zero_stage != 2 or reduced_at_once(config) >= _largest_unit(config)
    if engine.overlap and not safe:
        raise UserError(
            f"engine.overlap=true at ZeRO stage 2 needs an engine.bucket of {_largest_unit(config):,} or more for this "
            f"model, given {engine.bucket:,}. Leave engine.bucket or engine.overlap out."
        )
    return engine.overlap


def reduced_at_once(config: Config) -> int:
    """Numbers in the buffer through which gradients are reduced; a larger tensor goes by itself."""
    if config.engine.bucket != AUTO:
        return config.engine.bucket
    return min(parameters(config.model), max(SMALLEST_BUCKET, _largest_unit(config)))


def _largest_unit(config: Config) -> int:
    """Numbers in a block or in the embedding of tokens: no parameter has more."""
    return max(block_parameters(config.model), config.model.vocabulary * config.model.width)


def gathered_ahead(config: Config) -> int:
    """Numbers that stage 3 gathers before they are needed."""
    return config.engine.prefetch_blocks * block_parameters(config.model)
