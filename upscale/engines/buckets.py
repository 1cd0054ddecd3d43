"""How much DeepSpeed moves at a time, chosen for the model: what its engine is given and what a plan counts with.

DeepSpeed's own default, 500 million numbers, is a buffer of 2 GB on every GPU, at stages 1 and 2 as at stage 3, for a
model of width 384 that has 29 million parameters. A block at a time keeps the messages large (64 MB at least, where a
ring has reached its bandwidth) and lets the first one leave early; w 384 to 1024 then take 64 MB, w 2048 201 MB, w 4096
805 MB. Two further settings are left as they are. `allgather_bucket_size` is not read where torch can gather into one
tensor. `stage3_param_persistence_threshold`, 100 000 numbers, keeps every vector of a model up to w 4096 gathered (the
longest has 4 w) and from w 384 up no matrix.
"""

from __future__ import annotations

from upscale.config import AUTO, Config, EngineConfig
from upscale.model.costs import block_parameters, parameters

SMALLEST_BUCKET = 1 << 24


def overlaps(engine: EngineConfig) -> bool:
    """Whether DeepSpeed reduces gradients, and at stage 3 gathers weights, beside the computation.

    `auto` is its own choice, stage 3 only. Stages 1 and 2 give the same losses with it, for a second bucket's memory;
    whether it is faster there has not been measured on a GPU, so it stays the user's choice.
    """
    return engine.zero_stage == 3 if engine.overlap == AUTO else engine.overlap


def reduced_at_once(config: Config) -> int:
    """Numbers in the buffer through which gradients are reduced; a larger tensor goes by itself."""
    if config.engine.bucket != AUTO:
        return config.engine.bucket
    return min(parameters(config.model), max(SMALLEST_BUCKET, block_parameters(config.model)))


def gathered_ahead(config: Config) -> int:
    """Numbers that stage 3 gathers before they are needed."""
    return config.engine.prefetch_blocks * block_parameters(config.model)
