"""DeepSpeed ZeRO 0 to 3 behind the engine protocol.

DeepSpeed runs in its float32 mode with an optimizer of ours: the model casts by itself, learning rates are each group's
base times the schedule, and a sleeping group has learning rate and weight decay zero. The attributes of its
optimizers that are read here are private, so only the tested version is accepted.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Iterator

import torch
from torch import nn

from upscale import optim
from upscale.config import Config
from upscale.distributed.world import World
from upscale.engines import buckets
from upscale.engines.protocol import Fragment, StepReport
from upscale.errors import UserError
from upscale.model.transformer import Transformer
from upscale.model.weights import materialize

TESTED_VERSION = "0.19.8"


def _import_deepspeed(device: torch.device):
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # It would start `numactl` to count devices in every reduction of stage 3, for a layout that is not used here.
        os.environ.setdefault("LOCAL_SIZE", "1")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    import deepspeed

    if deepspeed.__version__.split("+")[0] != TESTED_VERSION:
        raise UserError(
            f"deepspeed {deepspeed.__version__} is installed, but this engine reads private attributes of "
            f"{TESTED_VERSION}: pip install deepspeed=={TESTED_VERSION}"
        )
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Looking into it makes DeepSpeed try by compilers which of its kernels could be built, and build one for inference
    # on CPUs (28 s). Training uses none of them, and a rank that is killed meanwhile would leave the compiler's files.
    deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


class DeepSpeedEngine:
    def __init__(self, config: Config, model: Transformer, world: World):
        deepspeed = _import_deepspeed(world.device)
        self.world, self.stage, self.clip = world, buckets.stage(config, world.size), config.optimizer.clip
        settings = {
            # Rows and accumulation are the trainer's: DeepSpeed only learns where an optimizer step ends.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "zero_optimization": {
                "stage": self.stage,
                "overlap_comm": buckets.overlaps(config),
                "reduce_bucket_size": buckets.reduced_at_once(config),
                "stage3_prefetch_bucket_size": buckets.gathered_ahead(config),
            },
            # Clipping is ours: see _clip_partitions. At stage 0 DeepSpeed's does not check that the norm is finite.
            "gradient_clipping": 0.0,
            "steps_per_print": 2**31,
            "wall_clock_breakdown": False,
            # On by default, it would wait for the GPU before every micro-batch and after every step.
            "timers": {"throughput": {"enabled": False}},
        }
        groups = optim.parameter_groups(model, config)  # by shapes, which stage 3 takes away
        if self.stage == 3:
            for block in model.blocks:  # only one of them at a time is whole
                deepspeed.zero.Init(materialize(block, world.device), config_dict_or_path=settings, dtype=torch.float32)
        materialize(model, world.device)
        if self.stage == 3 and config.engine.in_bfloat16:
            self._gather_in_bfloat16(model)
        self.parameters = dict(model.named_parameters())
        self.optimizer = optim.create(config, groups, self.parameters, world.device)
        self.engine, *_ = deepspeed.initialize(
            model=model, optimizer=self.optimizer.torch_optimizer, config=settings, dist_init_required=False
        )
        if world.size == 1 and self.stage == 0:
            self.engine.enable_backward_allreduce = False  # it would copy each gradient into a bucket and back
        optim.freeze(self.optimizer.groups, self.parameters)
        self.zero = self.engine.optimizer
        if self.stage == 3:
            partitions = enumerate(self.zero.fp32_partitioned_groups_flat)
            self.optimizer.held = [(self.zero.sub_group_to_group_id[index], flat) for index, flat in partitions]
            self.zero._get_norm_groups = lambda: [self._clip_partitions()]
        elif self.stage:
            self.optimizer.held = list(enumerate(self.zero.single_partition_of_fp32_groups))
            self.zero.scaled_global_norm = self._clip_partitions
        if self.stage:
            self.optimizer.pieces = lambda: (
                (name, flat, start, length) for name, _, flat, start, length in self._pieces()
            )

    def _gather_in_bfloat16(self, model: Transformer) -> None:
        """Have stage 3 gather matrices in bfloat16: autocast would round them after it, so that no bit changes."""
        from deepspeed.runtime.torch_autocast import PARAM_COMM_DTYPE_ATTR_NAME

        for module in model.modules():
            if isinstance(module, nn.Linear):
                setattr(module.weight, PARAM_COMM_DTYPE_ATTR_NAME, torch.bfloat16)

    def train_mode(self, training: bool) -> None:
        self.engine.train(training)

    def logits(
        self, tokens: torch.Tensor, active_blocks: int, last_only: bool = False, row_keys: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.engine(tokens, active_blocks, last_only, row_keys)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks where the loss is already a share of the global mean.
        self.engine.backward(loss * self.world.size, scale_wrt_gas=False)

    def step(self, learning_rate_factor: float, awake_groups: int) -> StepReport:
        self.optimizer.prepare(learning_rate_factor, awake_groups)
        report = self._step_replicated() if self.stage == 0 else self._step_sharded()
        if report.applied:
            self.optimizer.count(awake_groups)
        return report

    def _step_replicated(self) -> StepReport:
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.clip).item()
        if not math.isfinite(norm):
            self.engine.zero_grad()
            return StepReport(math.inf, False)
        self.engine.step()
        return StepReport(norm, True)

    def _step_sharded(self) -> StepReport:
        self.engine.step()
        return StepReport(float(self.zero._global_grad_norm), not self.zero.overflow)

    def _clip_partitions(self) -> torch.Tensor:
        """The norm of the whole gradient on the CPU, before it is clipped here: what DeepSpeed then judges and reports.

        In place of its own norm and clipping, which launch several kernels for every tensor, reduce for every group
        and wait three times for each: 1118 kernels and 33 waits in a step of width 1024, against 1 wait here.
        """
        pieces = [piece for group in self.zero.averaged_gradients.values() for piece in group or []]
        norm = self.world.all_reduce_sum(torch.nn.utils.get_total_norm(pieces).square()).sqrt()
        # Not by NaN: stage 3 keeps the zeros of sleeping parameters in these buffers, and never writes them again.
        torch._foreach_mul_(pieces, (self.clip / (norm + 1e-6)).clamp(max=1.0).nan_to_num(nan=1.0))
        return norm.cpu()  # the one wait for the device: every rank must know whether to step

    def fragments(self) -> Iterator[Fragment]:
        self.optimizer.create_states()
        replica, replicas = (self.world.rank, self.world.size) if self.stage == 0 else (0, 1)
        for name, offset, flat, start, length in self._pieces():
            whole = self.optimizer.tensors(flat)
            views = {key: tensor.view(-1)[start : start + length] for key, tensor in whole.items()}
            yield Fragment(name, offset, views, replica, replicas)

    def _pieces(self) -> Iterator[tuple[str, int, torch.Tensor, int, int]]:
        """What this rank steps: name, offset in the parameter, the tensor that holds it, its place there, length."""
        for name, parameter in self.parameters.items():
            if self.stage == 0:
                yield name, 0, parameter, 0, parameter.numel()
            elif self.stage == 3:
                size = parameter.ds_numel
                share = math.ceil(size / self.world.size)
                begin = min(self.world.rank * share, size)
                length = min(begin + share, size) - begin
                group, start, _ = self.zero.grad_position[self.zero.get_param_id(parameter)]
                if length:
                    yield name, begin, self.zero.fp32_partitioned_groups_flat[group], start, length
            elif (mapping := parameter._hp_mapping) is not None:
                flat = self.zero.single_partition_of_fp32_groups[mapping.param_group_index]
                here = mapping.hp_fragment_address
                yield name, mapping.lp_fragment_address.start, flat, here.start, here.numel

    def steps_taken(self) -> dict[int | str, int]:
        return self.optimizer.counts()

    def loaded(self, steps_taken: dict[int | str, int] | None) -> None:
        if steps_taken is not None:
            self.optimizer.restore(steps_taken)
        if self.stage == 3:
            for index in range(len(self.zero.fp32_partitioned_groups_flat)):
                self.zero._reassign_or_swap_out_partitioned_parameters(index)
            if self.zero.persistent_parameters:
                self.zero.persistent_parameters[0].all_gather(self.zero.persistent_parameters)
        elif self.stage:
            self.zero.update_lp_params()

    def close(self) -> None:
        self.engine.destroy()
        if self.stage == 3:
            # Hooks of its graph, which no garbage collector sees, keep stage 3 alive: its memory is freed under it.
            weights = [self.zero.fp32_partitioned_groups_flat, self.zero.fp16_partitioned_groups_flat]
            buffers = [self.zero.grad_partitions_flat_buffer, *itertools.chain(*weights)]
            parameters = [tensor for each in self.parameters.values() for tensor in (each.data, each.ds_tensor)]
            states = [tensor for state in self.optimizer.torch_optimizer.state.values() for tensor in state.values()]
            for tensor in (*buffers, *parameters, *states):
                tensor.untyped_storage().resize_(0)
