"""Counts the bytes that autograd saves of one block of every kind on a GPU, beside those that are planned, as JSON.

python saved_tensors.py [compiled]      of blocks that Inductor has compiled
"""

from __future__ import annotations

import itertools
import json
import sys

import torch

from upscale.config import files as config_files
from upscale.model import blocks, parametrization

ROWS, CONTEXT, WIDTH = 4, 64, 256
VARIANTS = {
    "plain": [],
    "qk_norm": ["model.qk_norm=true"],
    "no dropout": ["model.dropout=0.0"],
    "keys of rows": ["model.dropout_keys=row"],
}


def saved_bytes(config, compiled: bool) -> int:
    model = parametrization.build(config).train().cuda()
    if compiled:
        torch._dynamo.reset()
        model.compile_blocks()
    block = model.insides()[0]
    x = torch.zeros(ROWS, CONTEXT, WIDTH, device="cuda", requires_grad=True)
    keys = torch.arange(ROWS, device="cuda") if config.model.dropout_keys == "row" else None
    own = {tensor.untyped_storage().data_ptr() for tensor in (*block.parameters(), *block.buffers())}
    found: dict[int, torch.UntypedStorage] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.numel() > 2:  # not the state of attention's random numbers
            found[storage.data_ptr()] = storage
        return tensor

    bf16 = config.engine.precision == "bf16"
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cuda", torch.bfloat16, enabled=bf16, cache_enabled=False),
    ):
        block(x, keys)
    return sum(storage.nbytes() for storage in found.values())


def main() -> None:
    compiled = sys.argv[1:] == ["compiled"]
    shape = [f"model.width={WIDTH}", f"model.context={CONTEXT}", "model.depth=1", "model.dropout=0.1"]
    for kind, variant, precision in itertools.product(blocks.KINDS, VARIANTS, ("bf16", "fp32")):
        settings = [*shape, f"model.block={kind}", f"engine.precision={precision}", *VARIANTS[variant]]
        config = config_files.load(None, settings).resolved()
        block = blocks.KINDS[kind]
        counted = (block.compiled_bytes if compiled else block.saved_bytes)(config.model, ROWS, precision)
        print(json.dumps([f"{kind}, {variant}, {precision}", saved_bytes(config, compiled), counted]), flush=True)


if __name__ == "__main__":
    main()
