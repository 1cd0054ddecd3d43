"""The uniform source: independent uniform tokens, the control that teaches nothing."""

import torch

from upscale.randomness import Purpose, Stream


class UniformSource:
    """Writes noise; reads neither conditions nor seeds."""

    seed_tokens = 0

    def __init__(self, *, vocabulary: int) -> None:
        if not 1 <= vocabulary <= 256:
            raise ValueError(f"vocabulary is {vocabulary}; allowed: 1 to 256 (rows are uint8)")
        self.vocabulary = vocabulary

    def write(self, stream: Stream, conditions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(L, rows, length) uint8 of the shape of `conditions`."""
        _, rows, length = conditions.shape
        return stream.integers(Purpose.UNIFORM_ROW, self.vocabulary, rows, length).to(torch.uint8)
