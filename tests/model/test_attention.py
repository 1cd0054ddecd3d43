"""Attention by products, as a CPU computes it, against the softmax written out in float64 and the fused attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from upscale.model import attention

SCALE = 0.3


def inputs(positions: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Queries, keys and values as a projection leaves them, not one after the other in memory; values below 2."""
    torch.manual_seed(positions)
    projected = torch.randn(2, positions, 3, 4, 8).clamp(-2, 2).to(dtype)
    return [part.requires_grad_() for part in projected.permute(2, 0, 3, 1, 4)]


def written_out(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    logits = SCALE * query.double() @ key.double().transpose(-2, -1)
    weights = logits.exp() * torch.ones(logits.shape[-2:]).tril()
    return weights / weights.sum(-1, keepdim=True) @ value.double()


@pytest.mark.parametrize("positions", [1, 2, 7, 64])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_output_and_gradients_are_those_of_the_formula(positions, dtype, tolerance):
    """Where the positions do not divide into halves, too. bfloat16 keeps 8 bits of each logit."""
    mine = inputs(positions, dtype)
    output = attention.causal_attention(*mine, SCALE)
    others = [part.detach().double().requires_grad_() for part in mine]
    expected = written_out(*others)
    torch.testing.assert_close(output.double(), expected, atol=tolerance, rtol=0)
    direction = torch.randn(output.shape)
    gradients = torch.autograd.grad(output, mine, direction.to(dtype))
    for one, other in zip(gradients, torch.autograd.grad(expected, others, direction.double()), strict=True):
        torch.testing.assert_close(one.double(), other, atol=4 * tolerance, rtol=0)


@pytest.mark.parametrize(("positions", "probabilities"), [(64, 3 / 4 * 64**2), (65, 0)])
def test_long_rows_are_left_to_the_fused_attention(positions, probabilities):
    """Which keeps no probabilities. Of 8 rows and heads the others keep three quarters of them, once."""
    parts, kept = inputs(positions, torch.float32), []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = attention.causal_attention(*parts, SCALE)
    large = {tensor.untyped_storage().data_ptr(): tensor.numel() for tensor in kept if tensor.shape[-1] > 8}
    assert sum(numbers for numbers in large.values() if numbers > 8 * 8 * 65) == 8 * probabilities
    torch.testing.assert_close(output, F.scaled_dot_product_attention(*parts, is_causal=True, scale=SCALE))
