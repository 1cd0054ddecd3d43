"""Activation checkpointing, `model.checkpointing`: what a block keeps for its backward pass and what it computes again.

- `none` keeps everything that autograd asks for.
- `selective` keeps the block's input, the results of its four matrix products and attention's; norms, ReLU, dropout
  and casts, which cost memory traffic but next to no arithmetic, are computed again.
- `full` keeps the block's input only and computes all of the block again, a third more arithmetic.

A compiled block needs no help with `selective`: the compiler splits forward from backward so that as few bytes as
possible are kept, and computes again only what is cheap.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

_aten = torch.ops.aten
KEPT = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def run(
    block: nn.Module, x: torch.Tensor, keys: torch.Tensor | None, checkpointing: str, compiled: bool
) -> torch.Tensor:
    """The block's output, with as much kept for its backward pass as `checkpointing` says."""
    if checkpointing == "none" or not torch.is_grad_enabled() or (checkpointing == "selective" and compiled):
        return block(x, keys)
    if checkpointing == "full":
        return checkpoint(block, x, keys, use_reentrant=False)
    return checkpoint(block, x, keys, use_reentrant=False, context_fn=_contexts)


def _contexts() -> tuple[Keep, Reuse]:
    kept: deque = deque()
    return Keep(kept), Reuse(kept)


class Keep(TorchDispatchMode):
    """Appends the results of the operations in KEPT to `kept`.

    torch's own selective checkpointing does the same, but wants every other operation repeated exactly, and ZeRO 3
    does not gather the same weights in the same moments of a block's forward pass and of its repetition.
    """

    def __init__(self, kept: deque):
        super().__init__()
        self.kept = kept

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        output = operation(*arguments, **(keywords or {}))
        if operation in KEPT:
            # Without their graph, which would keep the rest alive.
            self.kept.append((operation, tree_map_only(torch.Tensor, torch.Tensor.detach, output)))
        return output


class Reuse(TorchDispatchMode):
    """Takes the results of the operations in KEPT from `kept`, in the order in which they were computed."""

    def __init__(self, kept: deque):
        super().__init__()
        self.kept, self.last = kept, None

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        if operation is _aten.add_.Tensor and arguments[0].untyped_storage().data_ptr() == self.last:
            return arguments[0]  # ZeRO 3 adds a layer's bias in place, so it is in what was kept
        if operation not in KEPT:
            return operation(*arguments, **(keywords or {}))
        known, output = self.kept.popleft()
        assert known is operation, f"{operation} is computed again where {known} was computed"
        self.last = output.untyped_storage().data_ptr() if isinstance(output, torch.Tensor) else None
        return output
