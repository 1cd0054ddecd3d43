"""What a server of tests/forks.py imports once for all processes on the stand-in that it forks.

DeepSpeed asks while it is imported whether there is a GPU. The answer is given here instead, because a process that has
asked the CUDA runtime may not use it after a fork.
"""

import os

import torch

available = torch.cuda.is_available
torch.cuda.is_available = lambda: True
os.environ["DS_ACCELERATOR"] = "cuda"

import tests.preloaded  # noqa: E402

torch.cuda.is_available = available
del os.environ["DS_ACCELERATOR"]

__all__ = ["tests"]
