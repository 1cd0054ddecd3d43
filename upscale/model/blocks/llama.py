"""The block of Llama (Touvron et al. 2023): norms before, rotary positions, a gated feed-forward layer, no biases.

arXiv 2603.10055 trains such a model on cellular automata.
"""

from __future__ import annotations

import math
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

HIDDEN_MULTIPLE = 64


def hidden_size(model: ModelConfig) -> int:
    """Numbers in the feed-forward layer: 8/3 of the width, as many weights as 4 widths have without a gate, rounded up
    to a multiple of HIDDEN_MULTIPLE."""
    return math.ceil(8 * model.width / 3 / HIDDEN_MULTIPLE) * HIDDEN_MULTIPLE


class LlamaBlock(Block):
    """x + dropout(attention(norm(x))), then x + dropout(feedforward(norm(x))); `forward` gives what both add."""

    kind = "llama"
    residual, learned_positions, final_norm = True, False, True
    parameter_table = {
        "attention.project_in.weight": Parameter("hidden", "attention", matrices=3),
        "attention.project_out.weight": Parameter("hidden", "attention"),
        "attention.query_norm.weight": Parameter("gain", "attention"),
        "attention.key_norm.weight": Parameter("gain", "attention"),
        "attention_norm.weight": Parameter("gain", "norms"),
        "feedforward_in.weight": Parameter("hidden", "ff", matrices=2),
        "feedforward_out.weight": Parameter("hidden", "ff"),
        "feedforward_norm.weight": Parameter("gain", "norms"),
    }

    def __init__(self, model: ModelConfig):
        super().__init__()
        size, hidden = model.width // model.heads, hidden_size(model)
        norms = (rms_norm(size), rms_norm(size)) if model.qk_norm else None
        self.attention = RotaryAttention(model.width, model.heads, norms, model.context)
        self.attention_norm = rms_norm(model.width)
        self.feedforward_in = nn.Linear(model.width, 2 * hidden, bias=False)
        self.feedforward_out = nn.Linear(hidden, model.width, bias=False)
        self.feedforward_norm = rms_norm(model.width)
        self.attention_dropout = Dropout(model.dropout, site=0)
        self.feedforward_dropout = Dropout(model.dropout, site=1)

    def forward(self, x: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        attended = self.attention_dropout(self.attention(self.attention_norm(x)), keys).float()
        gate, hidden = self.feedforward_in(self.feedforward_norm(x + attended)).chunk(2, -1)
        fed = self.feedforward_out(F.silu(gate) * hidden)
        return attended + self.feedforward_dropout(fed, keys)

    @classmethod
    def problems(cls, model: ModelConfig, heads: int) -> Iterator[tuple[str, str]]:
        return rotary_problems(model, heads)

    @classmethod
    def matrix_parameters(cls, model: ModelConfig) -> int:
        return 4 * model.width**2 + 3 * model.width * hidden_size(model)

    @classmethod
    def vector_parameters(cls, model: ModelConfig) -> int:
        """Two gains of the width, and with qk_norm two of a head's size."""
        return 2 * model.width + (2 * (model.width // model.heads) if model.qk_norm else 0)

    @classmethod
    def saved_bytes(cls, model: ModelConfig, rows: int, precision: str) -> float:
        """Per position: float32 inputs of two norms (8 w) and their sizes (8), two masks (2 w), attention's log-sum-exp
        (4 a head), and as products have them: both inputs, queries, keys and values, queries and keys once turned, and
        attention's output (8 w numbers), and four of the hidden layer; with qk_norm the sizes of what is normalised,
        and in bf16 its float32 copies. Per block in bf16 the bfloat16 copies of its matrices.
        """
        number, w = PRODUCT_BYTES[precision], model.width
        position = (8 + 8 * number) * w + 2 * mask_bytes(model) + 8 + 4 * model.heads + 4 * number * hidden_size(model)
        position += number * output_copied(model, number)
        if model.qk_norm:
            position += (8 * w if number == 2 else 0) + 8 * model.heads
        return rows * model.context * position + (2 * cls.matrix_parameters(model) if number == 2 else 0)

    @classmethod
    def compiled_bytes(cls, model: ModelConfig, rows: int, precision: str) -> float:
        """As eager autograd, but without the hidden layer's gate after SiLU; in bf16 with attention's bfloat16 result
        in place of the second norm's float32 input, and without float32 copies of queries and keys.
        """
        number, w = PRODUCT_BYTES[precision], model.width
        position = number * hidden_size(model) + (4 - number) * w
        if model.qk_norm:
            position += 8 * w if number == 2 else 0
        return cls.saved_bytes(model, rows, precision) - rows * model.context * position

    @classmethod
    def product_numbers(cls, model: ModelConfig) -> int:
        return 5 * model.width + 2 * hidden_size(model)
