"""A modern block: norms before, rotary positions, normalised queries and keys, squared ReLU (So et al. 2021), no
biases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from upscale.model.attention import RotaryAttention, rms_norm, rotary_problems
from upscale.model.blocks.base import PRODUCT_BYTES, Block, Parameter, mask_bytes, output_copied
from upscale.model.dropout import Dropout

if TYPE_CHECKING:
    from upscale.config import ModelConfig


class PrenormBlock(Block):
    """x + dropout(attention(norm(x))), then x + dropout(feedforward(norm(x))); `forward` gives what both add.

    Queries and keys are normalised whatever `model.qk_norm` says, without gains.
    """

    kind = "prenorm"
    residual, learned_positions, final_norm = True, False, True
    parameter_table = {
        "attention.project_in.weight": Parameter("hidden", "attention", matrices=3),
        "attention.project_out.weight": Parameter("hidden", "attention"),
        "attention_norm.weight": Parameter("gain", "norms"),
        "feedforward_in.weight": Parameter("hidden", "ff"),
        "feedforward_out.weight": Parameter("hidden", "ff"),
        "feedforward_norm.weight": Parameter("gain", "norms"),
    }

    def __init__(self, model: ModelConfig):
        super().__init__()
        width, size = model.width, model.width // model.heads
        norms = rms_norm(size, gain=False), rms_norm(size, gain=False)
        self.attention = RotaryAttention(width, model.heads, norms, model.context)
        self.attention_norm = rms_norm(width)
        self.feedforward_in = nn.Linear(width, 4 * width, bias=False)
        self.feedforward_out = nn.Linear(4 * width, width, bias=False)
        self.feedforward_norm = rms_norm(width)
        self.attention_dropout = Dropout(model.dropout, site=0)
        self.feedforward_dropout = Dropout(model.dropout, site=1)

    def forward(self, x: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        attended = self.attention_dropout(self.attention(self.attention_norm(x)), keys).float()
        fed = self.feedforward_out(F.relu(self.feedforward_in(self.feedforward_norm(x + attended))).square())
        return attended + self.feedforward_dropout(fed, keys)

    @classmethod
    def problems(cls, model: ModelConfig, heads: int) -> Iterator[tuple[str, str]]:
        return rotary_problems(model, heads)

    @classmethod
    def matrix_parameters(cls, model: ModelConfig) -> int:
        return 12 * model.width**2

    @classmethod
    def vector_parameters(cls, model: ModelConfig) -> int:
        return 2 * model.width

    @classmethod
    def saved_bytes(cls, model: ModelConfig, rows: int, precision: str) -> float:
        """Per position: float32 inputs of two norms (8 w) and their sizes (8), two masks (2 w), attention's log-sum-exp
        and the sizes of queries and keys (12 a head), and as products have them: both inputs, queries, keys and values,
        queries and keys once turned, and attention's output (8 w numbers), and the hidden layer before and after it is
        squared (8 w). In bf16 float32 copies of queries and keys (8 w) and of the hidden layer before it is squared
        (16 w), and, per block, bfloat16 copies of the matrices.
        """
        number, w = PRODUCT_BYTES[precision], model.width
        position = (8 + 16 * number) * w + 2 * mask_bytes(model) + 8 + 12 * model.heads
        position += number * output_copied(model, number)
        copies = 0
        if number == 2:
            position, copies = position + 24 * w, 2 * cls.matrix_parameters(model)
        return rows * model.context * position + copies

    @classmethod
    def compiled_bytes(cls, model: ModelConfig, rows: int, precision: str) -> float:
        """As eager autograd in fp32; in bf16 with attention's bfloat16 result in place of the second norm's float32
        input, and without float32 copies of queries, keys and the hidden layer.
        """
        copies = 26 * model.width if PRODUCT_BYTES[precision] == 2 else 0
        return cls.saved_bytes(model, rows, precision) - rows * model.context * copies

    @classmethod
    def product_numbers(cls, model: ModelConfig) -> int:
        return 9 * model.width
