"""What every block is made of: its module, what each of its parameters is for, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

if TYPE_CHECKING:
    from upscale.config import ModelConfig

PRODUCT_BYTES = {"bf16": 2, "fp32": 4}
"""Of a number in a matrix product; `auto` is not among them, because it must be settled before bytes are counted."""


def output_copied(model: ModelConfig, number: int) -> int:
    """Numbers a position in attention's output as it was computed: saved beside its copy in the order that its
    projection reads, by the bfloat16 kernel where queries in an order of their own are several heads'."""
    return model.width if model.heads > 1 and number == 2 else 0


def mask_bytes(model: ModelConfig) -> int:
    """A position's bytes of one dropout mask, booleans on a GPU."""
    return model.width if model.dropout else 0


@dataclass(frozen=True)
class Parameter:
    """What a parameter is for: its role under muP (model/parametrization.py), the part of the model that
    `init.reinitialize` and `optimizer.freeze` name, and how many matrices lie on top of each other in it."""

    role: str
    part: str
    matrices: int = 1


class Block(nn.Module):
    """A block of the model. Every subclass in this room with an attribute `kind` is one.

    The model around it calls `forward`; counts are functions of a resolved model config alone.
    """

    kind: ClassVar[str]
    """Its name in `model.block`."""
    parameter_table: ClassVar[dict[str, Parameter]]
    """Every parameter that the block may have, by its name below the block."""
    residual: ClassVar[bool]
    """True: `forward` gives what is added to x; False: it gives the new x."""
    learned_positions: ClassVar[bool]
    """Whether the model has an embedding of positions."""
    final_norm: ClassVar[bool]
    """Whether the model normalises what its head reads, by root mean square."""

    def forward(self, x: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        """The output in float32, (rows, positions, width) as x; `keys` (rows,) are those of dropout's masks."""
        raise NotImplementedError

    @classmethod
    def problems(cls, model: ModelConfig, heads: int) -> Iterator[tuple[str, str]]:
        """Impossible values as (key, message)."""
        yield from ()

    @classmethod
    def matrix_parameters(cls, model: ModelConfig) -> int:
        """Numbers in matrices, each of which a token is multiplied with once."""
        raise NotImplementedError

    @classmethod
    def vector_parameters(cls, model: ModelConfig) -> int:
        """Numbers in biases and gains."""
        raise NotImplementedError

    @classmethod
    def parameters_in_all(cls, model: ModelConfig) -> int:
        return cls.matrix_parameters(model) + cls.vector_parameters(model)

    @classmethod
    def flops_per_token(cls, model: ModelConfig) -> int:
        """Forward and backward: 6 for a number in a matrix, 12 w context for attention over the whole context.

        That is PaLM's count (Chowdhery et al. 2022, appendix B), which ignores that attention is causal, as the
        published MFU figures we compare with do.
        """
        return 6 * cls.matrix_parameters(model) + 12 * model.width * model.context

    @classmethod
    def saved_bytes(cls, model: ModelConfig, rows: int, precision: str) -> float:
        """What eager autograd saves on a GPU of one block for its backward pass, for `rows` rows of the model's
        context. (On a CPU masks are as large as what they mask, and attention's output is another copy.)"""
        raise NotImplementedError

    @classmethod
    def compiled_bytes(cls, model: ModelConfig, rows: int, precision: str) -> float:
        """The same of a compiled block, whose compiler chooses what to save and what to compute again."""
        return cls.saved_bytes(model, rows, precision)

    @classmethod
    def kept_bytes(cls, model: ModelConfig, rows: int, precision: str) -> float:
        """What one block keeps until its backward pass under activation checkpointing: its float32 input and,
        selective, the results of its matrix products, attention's (w) and its log-sum-exp."""
        numbers = cls.product_numbers(model) + model.width
        products = PRODUCT_BYTES[precision] * numbers + 4 * model.heads if model.checkpointing == "selective" else 0
        return rows * model.context * (4 * model.width + products)

    @classmethod
    def product_numbers(cls, model: ModelConfig) -> int:
        """Numbers a position that the block's matrix products write."""
        raise NotImplementedError
