"""A plain PyTorch loop around a model of the package x-transformers, fed by Upscale and measured by its tasks.

    python docs/own_loop/plain_loop.py [--steps 200] [--checkpoint loop.pt]

Run it again with a checkpoint, and it goes on with the very next row.
"""

import argparse
import math
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from x_transformers import Decoder, TransformerWrapper

import upscale
from upscale.evaluation import table

CONTEXT, BATCH = 128, 16
SOURCES = ["lstm", {"kind": "dyck", "weight": 0.5}]


def build(width: int = 64, depth: int = 2) -> torch.nn.Module:
    """A decoder over bytes."""
    layers = Decoder(dim=width, depth=depth, heads=2, rotary_pos_emb=True)
    return TransformerWrapper(num_tokens=256, max_seq_len=CONTEXT, attn_layers=layers)


def train(model: torch.nn.Module, steps: int, checkpoint: Path | None = None) -> list[float]:
    """Train until so many steps in all, from the checkpoint if there is one; the loss of each step in bits per byte."""
    rows = upscale.rows(SOURCES, [f"model.context={CONTEXT}", "data.lanes=16"])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    done, losses = 0, []
    if checkpoint and checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        rows.load_state_dict(saved["rows"])
        done = saved["done"]
    model.train()
    for inputs, targets in DataLoader(rows, BATCH):
        if done == steps:
            break
        logits = model(inputs)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())  # -100: no target
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item() / math.log(2))
        done += 1
        if checkpoint and done == steps:
            saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rows": rows.state_dict()}
            torch.save({**saved, "done": done}, checkpoint)
    return losses


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="in all")
    parser.add_argument("--checkpoint", type=Path, help="file to continue from, and to write at the end")
    parser.add_argument("--slices", type=int, default=200, help="of each task")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    model = build()
    losses = train(model, options.steps, options.checkpoint)
    print(f"loss: {losses[0]:.2f}, then {losses[-1]:.2f} bits per byte" if losses else "all steps were done")
    print(table(upscale.evaluate(model, ["dyck", "wp"], context=CONTEXT, slices=options.slices)))


if __name__ == "__main__":
    main()
