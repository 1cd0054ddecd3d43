"""What a server of tests/forks.py imports once for all processes that it forks: ten seconds of CPU time each."""

import deepspeed.module_inject.auto_ep_layer
import deepspeed.ops.op_builder.all_ops
import deepspeed.runtime.superoffload.superoffload_stage3
import pytest
import torch._inductor.compile_fx
import torch._subclasses.schema_check_mode
import torch.distributed.fsdp

import upscale.cli.evaluate
import upscale.engines.deepspeed
import upscale.engines.fsdp
import upscale.report
import upscale.train

__all__ = ["deepspeed", "pytest", "torch", "upscale"]
