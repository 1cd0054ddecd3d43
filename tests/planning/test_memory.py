"""Bytes against the storages that real engines hold, and against what autograd says it saves."""

import functools
import gc
import os
import weakref
from collections import deque

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.engines import common
from tests.ranks import run_ranks
from upscale import engines
from upscale.config import files as config_files
from upscale.distributed.world import World
from upscale.model import activation_checkpointing, attention, blocks, costs, parametrization
from upscale.model.activation_checkpointing import Keep, Reuse
from upscale.planning import memory

KINDS = {f"deepspeed stage {stage}": {"engine__zero_stage": stage} for stage in range(4)} | {
    "fsdp": {"engine__name": "fsdp"},
}
OTHERS = {
    "deepspeed stage 0, muon": {"engine__zero_stage": 0, "optimizer__kind": "muon"},
    "fsdp, muon": {"engine__name": "fsdp", "optimizer__kind": "muon"},
    "fsdp, llama": {"engine__name": "fsdp", "model__block": "llama"},
    "deepspeed stage 3, prenorm": {"engine__zero_stage": 3, "model__block": "prenorm"},
}
WIDTH = 256


def config(changes: dict):
    return common.config(model__width=WIDTH, schedule__wake_every=0, **changes)


def storages(tensors) -> int:
    """Bytes of the distinct storages behind the tensors."""
    found = {}
    for tensor in tensors:
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        storage = local.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def held(world, kinds: dict[str, dict]) -> dict[str, dict[str, int]]:
    """What every engine holds after two steps: weights with their master copies, and moments."""
    found = {}
    for label, changes in kinds.items():
        chosen = config(changes)
        model = parametrization.build(chosen)
        engine = engines.create(chosen, model, world)
        for step in range(2):
            mine = common.global_rows(step).tensor_split(world.size)[world.rank]
            common.train_step(engine, world, chosen, mine, step * common.BATCH)
        fragments = list(engine.fragments())
        partitions = [p.ds_tensor for p in model.parameters() if hasattr(p, "ds_tensor")]
        weights = [fragment.tensors["weight"] for fragment in fragments] + [p.data for p in model.parameters()]
        moments = [tensor for f in fragments for state, tensor in f.tensors.items() if state != "weight"]
        found[label] = {"weights": storages(weights + partitions), "moments": storages(moments)}
        del engine, model, fragments, partitions, weights, moments
        gc.collect()
    return found


@pytest.mark.parametrize("ranks", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_states_are_what_engines_hold(ranks):
    """Within 2 %, on the rank that holds most, for every engine and stage (issue 6, point 4)."""
    check_held(ranks, KINDS)


def test_states_of_other_blocks_and_optimizers_are_what_engines_hold():
    check_held(2, OTHERS)


def check_held(ranks: int, kinds: dict[str, dict]) -> None:
    results = run_ranks(held, ranks, kinds, timeout_seconds=500)
    for label, changes in kinds.items():
        planned = memory.state_bytes(config(changes), ranks)
        for kind, expected in (("weights", planned["weights"] + planned["master"]), ("moments", planned["moments"])):
            measured = max(result[label][kind] for result in results)
            assert measured == pytest.approx(expected, rel=0.02), f"{label} {kind} at {ranks} ranks"


def held_by_the_first_of(world, ranks: int) -> dict[str, dict[str, int]]:
    """As `held`, with `ranks` ranks of which only the first exists: collectives of a fake group do nothing."""
    dist.destroy_process_group()
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(ranks))
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    return held(World(0, ranks, world.device, "fake"), KINDS)


@pytest.mark.parametrize("ranks", [pytest.param(64, marks=pytest.mark.slow), 512])
def test_states_at_many_ranks_are_what_engines_hold(ranks):
    """The sharded models are really built, on the first rank, where shares are rounded up (issue 6, point 4).

    Within 3 %: at 512 ranks stage 3 aligns shares that are a few hundred elements small here, 2.05 % of its weights.
    """
    [found] = run_ranks(held_by_the_first_of, 1, ranks)
    for label, changes in KINDS.items():
        planned = memory.state_bytes(config(changes), ranks)
        assert found[label]["weights"] == pytest.approx(planned["weights"] + planned["master"], rel=0.03), label
        assert found[label]["moments"] == pytest.approx(planned["moments"], rel=0.03), label


def one_block(block: str, width: int, precision: str, *overrides: str):
    """A config of one block, the block without what is around it, and four rows of its input."""
    shape = [f"model.width={width}", "model.depth=1", "model.context=64", f"engine.precision={precision}"]
    chosen = config_files.load(None, [f"model.block={block}", *shape, *overrides]).resolved()
    x = torch.randn(4, chosen.model.context, width, requires_grad=True)
    return chosen, parametrization.build(chosen).train().insides()[0], x


def saved_by(module: torch.nn.Module, x: torch.Tensor, precision: str) -> list[torch.Tensor]:
    """The tensors that autograd saves in a forward pass, but for the module's own."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    saved = []

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            saved.append(tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16", cache_enabled=False),
    ):
        module(x)
    return saved


@pytest.mark.parametrize("block", blocks.KINDS)
@pytest.mark.parametrize(("width", "precision"), [(128, "bf16"), (256, "fp32")])
def test_a_checkpointed_block_keeps_what_is_counted(block, width, precision, monkeypatch):
    """Tensor by tensor: what the block's operations left behind, and the block's input."""
    monkeypatch.setattr(attention, "POSITIONS_BY_PRODUCTS", 0)  # fused, as on a GPU
    chosen, module, x = one_block(block, width, precision, "model.checkpointing=selective")
    kept, counted = deque(), blocks.KINDS[block].kept_bytes
    monkeypatch.setattr(activation_checkpointing, "_contexts", lambda: (Keep(kept), Reuse(kept)))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
        output = activation_checkpointing.run(module, x, None, "selective", compiled=False)
    tensors = [leaf for leaf in tree_leaves([outputs for _, outputs in kept]) if isinstance(leaf, torch.Tensor)]
    assert storages([x, *tensors]) == counted(chosen.model, 4, precision)
    output.sum().backward()
    assert not kept
    full = chosen.model.model_copy(update={"checkpointing": "full"})
    assert storages([x]) == counted(full, 4, precision)


@pytest.mark.parametrize("block", blocks.KINDS)
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_gate_and_the_final_norm_save_what_is_counted(block, precision):
    """Against autograd's hooks: a gate saves the block's float32 output, the norm its input, that normalised and its
    size; a model's count changes by just that."""
    chosen, module, x = one_block(block, 128, precision, "model.plain_blocks=0")
    model, positions = parametrization.build(chosen).train(), 4 * chosen.model.context
    gated = storages(saved_by(model.blocks[0], x, precision)) - storages(saved_by(module, x, precision))
    assert gated == 4 * 128 * positions
    plain = chosen.model.model_copy(update={"plain_blocks": 1})
    count = functools.partial(costs.activation_bytes, rows=4, precision=precision)
    assert count(chosen.model) - count(plain) == gated
    normed = storages(saved_by(model.final_norm, x, precision))
    head = positions * (6 * 128 + 22 * 256)
    assert count(plain) == blocks.KINDS[block].saved_bytes(plain, 4, precision) + normed + head


def test_less_is_kept_the_more_is_computed_again():
    chosen = config_files.load("configs/w1024.yaml", ["engine.precision=bf16"]).resolved()
    modes = [chosen.model.model_copy(update={"checkpointing": mode}) for mode in ("none", "selective", "full")]
    none, selective, full = (costs.activation_bytes(model, 64, "bf16") for model in modes)
    assert full < 0.3 * none and full < selective < 0.75 * none


def test_micro_batches_are_the_largest_that_fit():
    chosen = config_files.load("configs/w1024.yaml", ["engine.precision=bf16"]).resolved()
    rows = memory.largest_micro_batch(chosen, 8, 80e9)
    states = sum(memory.state_bytes(chosen, 8).values())
    assert rows % 8 == 0 and rows > 0

    def taken(count: int) -> float:
        return states + memory.activation_bytes(chosen, count)

    assert taken(rows) <= 80e9 * memory.USABLE_MEMORY < taken(rows + 8)
    assert memory.largest_micro_batch(chosen, 8, states / memory.USABLE_MEMORY) == 0


class Live(TorchDispatchMode):
    """The largest sum of storages that were alive at once, of those that operations made and no weight lies in."""

    def __init__(self, model):
        super().__init__()
        self.weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self.known, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known and storage._cdata not in self.weights:
                    self.known[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage._cdata)
        self.peak = max(self.peak, self.now)
        return result

    def _gone(self, key):
        self.now -= self.known.pop(key)


@pytest.mark.parametrize(("width", "precision"), [(256, "bf16"), (512, "fp32")])
def test_a_forward_pass_without_gradients_takes_no_more_than_is_counted(width, precision):
    """Against the storages alive at once in a real pass over four blocks, two of them behind gates."""
    shape = [f"model.width={width}", "model.depth=4", "model.plain_blocks=2", f"engine.precision={precision}"]
    chosen = config_files.load(None, [*shape, "model.context=128"]).resolved()
    model = parametrization.build(chosen).eval()
    tokens = torch.zeros(3, chosen.model.context, dtype=torch.int64)
    with torch.no_grad(), Live(model) as live:
        model(tokens, last_only=True)
    fits = live.peak / memory.USABLE_MEMORY
    assert memory.largest_inference_batch(chosen, fits) <= 3
    assert memory.largest_inference_batch(chosen, 4 * fits) >= 3


def test_the_largest_config_is_evaluated_in_full_batches(monkeypatch):
    """w 4096, whose float32 weights of 44 GiB leave 35 GiB of 79: nothing of an optimizer is there."""
    chosen = config_files.load("configs/w4096.yaml", ["engine.precision=bf16"]).resolved()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (35 * 2**30, 79 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 0)
    assert memory.inference_batch(chosen, torch.device("cuda", 0), 64) == 64
