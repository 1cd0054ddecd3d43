"""The stack source: a stack's operations and what it holds at the end, which is the target (arXiv 2601.21725).

The definition is that of the published code. With v = `values` and n = `operations`, a sample is n operations, the
separator v, and the stack from top to bottom, padded with v + 1 to n tokens: 2n + 1 tokens. An operation is 0, which
pops, or a value of 1 to v - 1, which pushes it, drawn uniformly from those that are not on the stack. The last
operation pops if two or more are on the stack. Else, with one or none there, it pushes; else it pushes with probability
3/4 among the first 2n/3 operations (rounded down) and 1/4 later. Only the final stack's tokens are targets. A row holds
as many whole samples as fit, and the first part of one more; in the published code it is one sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field

from upscale.randomness.streams import Purpose, Stream
from upscale.sources.base import Problems, Source, SourceSettings, exceeds
from upscale.sources.tokens import check_vocabulary, read_only

if TYPE_CHECKING:
    from upscale.config import ModelConfig


class StackSettings(SourceSettings):
    kind: Literal["stack"]
    operations: Annotated[int, Field(ge=2)] = 64
    """Operations of a sample."""
    values: Annotated[int, Field(ge=3)] = 100
    """Values are 1 to this less one, `operations` of them or more; it is the separator, the next id the pad."""

    @property
    def masked(self) -> bool:
        return True

    def problems(self, model: ModelConfig | None) -> Problems:
        if self.values <= self.operations:
            yield "values", f"{self.values} can run out of values: more than operations = {self.operations} are needed"
        if model and self.values + 2 > model.vocabulary:
            yield "values", f"{self.values} need {self.values + 2} tokens: {exceeds(model)}"
        if model and 2 * self.operations > model.context:
            yield (
                "operations",
                f"{self.operations} make samples of {2 * self.operations + 1} tokens, more than a row's "
                f"{model.context + 1}: lower it, or raise model.context",
            )

    def optimum(self, model: ModelConfig, first_target: int) -> float | None:
        """The final stack follows from the operations."""
        return 0.0

    def build(self, vocabulary: int) -> StackSource:
        return StackSource(vocabulary=vocabulary, **self.arguments())


class StackSource(Source):
    """Stacks and their read-out; reads neither conditions nor seeds."""

    def __init__(self, *, vocabulary: int, operations: int = 64, values: int = 100) -> None:
        check_vocabulary(vocabulary)
        if operations < 2:
            raise ValueError(f"operations is {operations}; allowed: 2 or more")
        if not operations < values <= vocabulary - 2:
            raise ValueError(f"values is {values}; allowed: more than operations ({operations}), to {vocabulary - 2}")
        self.vocabulary, self.operations, self.values = vocabulary, operations, values

    def write(self, stream: Stream, conditions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(L, rows, length) of the shape of `conditions`."""
        lanes, rows, length = conditions.shape
        n = self.operations
        count = -(-length // (2 * n + 1))
        samples = lanes * rows * count
        wishes = stream.uniform(Purpose.STACK_PUSH, rows, count, n).view(samples, n)
        words = stream.bits(Purpose.STACK_VALUE, rows * count * n).reshape(samples, n)
        device, some = stream.device, torch.arange(samples, device=stream.device)
        # Values 1 to v - 1 in a list of which the first `depth` are the stack, from bottom to top: pushing value number
        # k of the free ones swaps it with the first of these.
        held = torch.arange(1, self.values, device=device).repeat(samples, 1)
        depth = torch.zeros(samples, dtype=torch.int64, device=device)
        tokens = torch.full((samples, 2 * n + 1), self.values + 1, dtype=torch.int64, device=device)
        for time in range(n):
            push = (depth < 2) | (wishes[:, time] < (0.75 if time < 2 * n // 3 else 0.25))
            if time == n - 1:
                push = depth < 2
            place = depth + ((words[:, time] * (self.values - 1 - depth)) >> 32)
            value, bottom = held[some, place], held[some, depth]
            tokens[:, time] = torch.where(push, value, 0)
            held[some, depth], held[some, place] = (
                torch.where(push, value, bottom),
                torch.where(push, bottom, value),
            )
            depth += 2 * push - 1
        tokens[:, n] = self.values
        turn = torch.arange(n, device=device)
        final = held[:, :n].gather(1, (depth[:, None] - 1 - turn).clamp(min=0))
        there = turn < depth[:, None]
        tokens[:, n + 1 :] = final.where(there, self.values + 1)
        read = torch.ones_like(tokens, dtype=torch.bool)
        read[:, n + 1 :] = ~there
        tokens, read = (each.view(lanes, rows, -1)[..., :length] for each in (tokens, read))
        return read_only(tokens, read)
