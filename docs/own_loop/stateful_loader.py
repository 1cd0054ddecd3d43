"""A loader as torchtitan has them: torchdata's StatefulDataLoader over Upscale's rows, a state for each rank.

    python docs/own_loop/stateful_loader.py [--batches 20]

Its state goes into a checkpoint of torch.distributed.checkpoint like that of a model or an optimizer.
"""

import argparse
import pickle
from collections.abc import Iterator
from typing import Any

import torch
from torchdata.stateful_dataloader import StatefulDataLoader

import upscale


def as_torchtitan(inputs: torch.Tensor, targets: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """An item as torchtitan's trainer takes it."""
    return {"input": inputs}, targets


class RowLoader:
    """Batches of one data-parallel rank; `state_dict` has a key of the rank's own, so that checkpoints hold them all.

    The numbers of ranks and workers stay as they are. `every` says after how many batches a worker copies its state:
    between them the loader counts batches, and draws those again after a resume.
    """

    def __init__(self, given: Any, overrides: list[str], *, rank: int, world_size: int, batch: int, workers: int = 0):
        rows = upscale.rows(given, overrides, rank=rank, world_size=world_size, form=as_torchtitan)
        self.key = f"dp_rank_{rank}"
        self.loader = StatefulDataLoader(rows, batch_size=batch, num_workers=workers, snapshot_every_n_steps=10)

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        return iter(self.loader)

    def state_dict(self) -> dict[str, Any]:
        return {self.key: pickle.dumps(self.loader.state_dict())}  # bytes are saved by the rank that has them

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loader.load_state_dict(pickle.loads(state[self.key]))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=20)
    options = parser.parse_args(arguments)
    loader = RowLoader(["lstm"], ["model.context=128", "data.lanes=16"], rank=0, world_size=1, batch=8, workers=2)
    for number, (inputs, targets) in zip(range(options.batches), loader, strict=False):
        print(number, tuple(inputs["input"].shape), tuple(targets.shape))


if __name__ == "__main__":
    main()
