"""The program that writes tasks of bits in other tokens, against models whose loss is known."""

from __future__ import annotations

import pytest
import torch

from tests.benchmarks import token_pairs
from upscale.evaluation.tasks.bits import BITS, BITSREP

PAIR = (7, 200)


class Knows(torch.nn.Module):
    """Equal chances for the given tokens, hardly any for others."""

    def __init__(self, tokens: list[int]):
        super().__init__()
        self.logits = torch.full((256,), -100.0)
        self.logits[tokens] = 0.0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(*tokens.shape, 256)


@pytest.mark.parametrize(("tokens", "bits"), [(list(range(256)), 8.0), (list(PAIR), 1.0)])
def test_bits_of_a_known_model(tokens, bits):
    data = token_pairs.in_tokens(token_pairs.slices(BITSREP, 5, 65), PAIR)
    assert set(data.flat) == set(PAIR)
    assert token_pairs.bits_per_character(Knows(tokens), data) == pytest.approx(bits)


def test_only_the_two_tokens_change():
    written = token_pairs.slices(BITS, 5, 65)
    renamed = token_pairs.in_tokens(written, PAIR)
    assert ((renamed == ord("|")) == (written == ord("|"))).all()
    assert ((renamed == PAIR[0]) == (written == ord("0"))).all()
