"""FSDP2 (`fully_shard`) behind the engine protocol: every block is one unit that is gathered, computed and reduced.

A rank holds rows of every parameter as DTensors, over all ranks or, hybrid, over groups of `engine.shard_ranks` ranks
that hold copies of each other. Sleeping blocks are never gathered and their gradients stay None, on every rank alike
because the number of active blocks is a function of instances seen.

Weights, gradients' sums and moments are float32. With `engine.precision: bf16` the big matrices are cast to bfloat16
before they are gathered instead of after: the products see the same bits, and half of them travel. Norms, biases,
gates and embeddings are used in float32 by the model, so they are gathered in float32.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from upscale import optim
from upscale.config import AUTO, Config
from upscale.distributed.world import World
from upscale.engines.protocol import Fragment, StepReport
from upscale.errors import UserError
from upscale.model.transformer import Transformer
from upscale.model.weights import materialize


class FSDPEngine:
    def __init__(self, config: Config, model: Transformer, world: World):
        self.world, self.model, self.clip = world, model, config.optimizer.clip
        self.reshard, self.ahead = config.engine.reshard, config.engine.prefetch_blocks
        self.linked_blocks: int | None = None
        groups = optim.parameter_groups(model, config)
        mesh = _mesh(config, world)
        # Gates are the model's unit's: FSDP2 gives what it shards a class of its own, which must be one for all blocks
        # to share a compiled graph.
        for block in model.insides():
            fully_shard(block, mesh=mesh, reshard_after_forward=self.reshard, mp_policy=_precision(config, block))
        # Embeddings, gates and head stay gathered: the backward pass needs the head at once.
        fully_shard(model, mesh=mesh, reshard_after_forward=False, mp_policy=_precision(config, model))
        materialize(model, world.device)
        self.units = [module for module in model.modules() if isinstance(module, FSDPModule)]
        for unit in self.units:
            # FSDP averages over ranks where the loss is already a share of the global mean.
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)
        self.parameters: dict[str, DTensor] = dict(model.named_parameters())
        optim.freeze(groups, self.parameters)
        self.optimizer = optim.create(config, groups, self.parameters, world.device)
        self.shards, self.shard = mesh.size(-1), mesh.get_local_rank(mesh.ndim - 1)
        hybrid = mesh.ndim == 2
        self.replicas: int = mesh.size(0) if hybrid else 1
        self.replica: int = mesh.get_local_rank(0) if hybrid else 0

    def train_mode(self, training: bool) -> None:
        self.model.train(training)

    def logits(
        self, tokens: torch.Tensor, active_blocks: int, last_only: bool = False, row_keys: torch.Tensor | None = None
    ) -> torch.Tensor:
        self._gather_ahead(active_blocks)
        return self.model(tokens, active_blocks, last_only, row_keys)

    def _gather_ahead(self, active_blocks: int) -> None:
        """Tell every awake block which others to gather while it computes; one ahead is what FSDP2 does by itself."""
        if self.ahead == 1 or active_blocks == self.linked_blocks:
            return
        awake = self.model.insides(active_blocks)
        for index, block in enumerate(awake):
            block.set_modules_to_forward_prefetch(awake[index + 1 : index + 1 + self.ahead])
            block.set_modules_to_backward_prefetch(awake[max(0, index - self.ahead) : index][::-1])
        self.linked_blocks = active_blocks

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        # Every call scatters its gradient: kept until the last call, it would be whole, in float32, on every rank.
        # Copies of a shard need the sum over each other only once.
        self.model.set_requires_all_reduce(last)
        self.model.set_reshard_after_backward(last or self.reshard)
        loss.backward()

    def step(self, learning_rate_factor: float, awake_groups: int) -> StepReport:
        self.optimizer.prepare(learning_rate_factor, awake_groups)
        norm = self._gradient_norm()
        value = norm.item()  # the one wait for the device: every rank must know whether to step
        finite = math.isfinite(value)
        if finite:
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.clip, norm)
            self.optimizer.torch_optimizer.step()
            self.optimizer.count(awake_groups)
            self._free_gathered()
        self.optimizer.torch_optimizer.zero_grad()
        return StepReport(value if finite else math.inf, finite)

    def _gradient_norm(self) -> torch.Tensor:
        """The norm of the whole gradient, the same on every rank; of copies of a shard only the first counts."""
        pieces = [parameter.grad.to_local() for parameter in self.parameters.values() if parameter.grad is not None]
        squared = torch.nn.utils.get_total_norm(pieces).square()
        return self.world.all_reduce_sum(squared if self.replica == 0 else torch.zeros_like(squared)).sqrt()

    def _free_gathered(self) -> None:
        """Drop gathered weights that a forward pass without a backward pass left behind: they are no longer current."""
        for unit in self.units:
            unit.reshard()

    def fragments(self) -> Iterator[Fragment]:
        self.optimizer.create_states()
        for name, parameter in self.parameters.items():
            rows = parameter.shape[0]
            # As torch.chunk cuts: equal shards but for the last ones, which may be short or empty.
            first = min(self.shard * math.ceil(rows / self.shards), rows)
            whole = self.optimizer.tensors(parameter)
            views = {key: tensor.detach().to_local().view(-1) for key, tensor in whole.items()}
            if views["weight"].numel():
                yield Fragment(name, first * (parameter.numel() // rows), views, self.replica, self.replicas)

    def steps_taken(self) -> dict[int | str, int]:
        return self.optimizer.counts()

    def loaded(self, steps_taken: dict[int | str, int] | None) -> None:
        if steps_taken is not None:
            self.optimizer.restore(steps_taken)
        self._free_gathered()

    def close(self) -> None:
        return  # nothing else refers to it


def _mesh(config: Config, world: World) -> DeviceMesh:
    """All ranks in one sharding group, or groups of `engine.shard_ranks` consecutive ranks that copy each other."""
    size = world.size if config.engine.shard_ranks == AUTO else config.engine.shard_ranks
    if world.size % size:
        raise UserError(
            f"engine.shard_ranks = {size} does not divide the world of {world.size} ranks. Give a divisor of it, such "
            "as the number of GPUs in a node, or engine.shard_ranks=auto to shard over all ranks."
        )
    assert dist.is_initialized(), "a mesh needs the process group that World.join starts, also for one rank"
    if size == world.size:
        return init_device_mesh(world.device.type, (size,), mesh_dim_names=("shard",))
    return init_device_mesh(world.device.type, (world.size // size, size), mesh_dim_names=("replicate", "shard"))


def _precision(config: Config, module: nn.Module) -> MixedPrecisionPolicy:
    """In which type each parameter is gathered; torch before 2.15 cannot tell them apart and gathers all in float32."""
    known = {field.name for field in dataclasses.fields(MixedPrecisionPolicy)}
    if not config.engine.in_bfloat16 or "param_dtype_override_fn" not in known:
        return MixedPrecisionPolicy(reduce_dtype=torch.float32)
    matrices = {part.weight for part in module.modules() if isinstance(part, nn.Linear)}
    return MixedPrecisionPolicy(
        param_dtype=torch.bfloat16,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
        param_dtype_override_fn=lambda parameter: None if parameter in matrices else parameter.dtype,
    )
