"""The block of the paper (section 6.1): norms after the sums, ReLU, biases, positions learned by the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from upscale.model.attention import Attention
from upscale.model.blocks.base import PRODUCT_BYTES, Block, Parameter, mask_bytes, output_copied
from upscale.model.dropout import Dropout

if TYPE_CHECKING:
    from upscale.config import ModelConfig


class PaperBlock(Block):
    """x = dropout(LN(x + attention(x))); x = dropout(LN(x + feedforward(x))), over (rows, positions, width)."""

    kind = "paper"
    residual, learned_positions, final_norm = False, True, False
    parameter_table = {
        "attention.project_in.weight": Parameter("hidden", "attention", matrices=3),
        "attention.project_out.weight": Parameter("hidden", "attention"),
        "attention.project_out.bias": Parameter("bias", "attention"),
        "attention.query_norm.weight": Parameter("gain", "attention"),
        "attention.key_norm.weight": Parameter("gain", "attention"),
        "attention_norm.weight": Parameter("gain", "norms"),
        "attention_norm.bias": Parameter("bias", "norms"),
        "feedforward_in.weight": Parameter("hidden", "ff"),
        "feedforward_in.bias": Parameter("bias", "ff"),
        "feedforward_out.weight": Parameter("hidden", "ff"),
        "feedforward_out.bias": Parameter("bias", "ff"),
        "feedforward_norm.weight": Parameter("gain", "norms"),
        "feedforward_norm.bias": Parameter("bias", "norms"),
    }

    def __init__(self, model: ModelConfig):
        super().__init__()
        width, size = model.width, model.width // model.heads
        norms = (nn.LayerNorm(size, bias=False), nn.LayerNorm(size, bias=False)) if model.qk_norm else None
        self.attention = Attention(width, model.heads, norms, bias=True)
        self.attention_norm = nn.LayerNorm(width)
        self.feedforward_in = nn.Linear(width, 4 * width)
        self.feedforward_out = nn.Linear(4 * width, width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.attention_dropout = Dropout(model.dropout, site=0)
        self.feedforward_dropout = Dropout(model.dropout, site=1)

    def forward(self, x: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        x = self.attention_dropout(self.attention_norm(x + self.attention(x)), keys)
        fed = self.feedforward_out(F.relu(self.feedforward_in(x)))
        return self.feedforward_dropout(self.feedforward_norm(x + fed), keys)

    @classmethod
    def matrix_parameters(cls, model: ModelConfig) -> int:
        return 12 * model.width**2

    @classmethod
    def vector_parameters(cls, model: ModelConfig) -> int:
        """10 w biases and gains, and with qk_norm two gains of a head's size."""
        return 10 * model.width + (2 * (model.width // model.heads) if model.qk_norm else 0)

    @classmethod
    def saved_bytes(cls, model: ModelConfig, rows: int, precision: str) -> float:
        """bf16, per position: bfloat16 copies of both inputs and of attention's output (6 w), queries, keys and values
        (6 w), the hidden layer (8 w), float32 inputs of two norms (8 w), two masks (2 w), attention's log-sum-exp (4 a
        head) and the norms' means and deviations (16); with qk_norm also queries and keys in float32 and once
        normalised, and the means and deviations of each; per block the bfloat16 copies of its matrices (24 w^2). fp32:
        everything once at 4 bytes.
        """
        number, w = PRODUCT_BYTES[precision], model.width
        position = (8 + 10 * number) * w + 2 * mask_bytes(model) + 4 * model.heads + 16
        if model.qk_norm:
            position += number * (2 * w + output_copied(model, number)) + 16 * model.heads
            position += 8 * w if number == 2 else 0
        return rows * model.context * position + (2 * cls.matrix_parameters(model) if number == 2 else 0)

    @classmethod
    def compiled_bytes(cls, model: ModelConfig, rows: int, precision: str) -> float:
        """As eager autograd, but for a mask for ReLU (4 w), attention's output in its own order also without
        qk_norm, no float32 copies of queries and keys, and one of the norms' sizes less.
        """
        number, w = PRODUCT_BYTES[precision], model.width
        position = 4 * w - 4
        if number == 2:
            position += -8 * w + number * w if model.qk_norm else number * output_copied(model, number)
        return cls.saved_bytes(model, rows, precision) + rows * model.context * position

    @classmethod
    def product_numbers(cls, model: ModelConfig) -> int:
        return 9 * model.width
