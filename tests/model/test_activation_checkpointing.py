"""What is computed again in the backward pass, against the same model that keeps everything: every bit must agree."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests import tiny
from tests.model.test_dropout import row_keys
from tests.model.test_transformer import TOKENS, random_model
from upscale.model import blocks
from upscale.model.transformer import row_losses


def backward(checkpointing: str, keys: torch.Tensor | None, **changes: object) -> tuple[list, int]:
    """Loss and every gradient of a model with dropout, and the backward pass's FLOPs."""
    model = random_model(model__checkpointing=checkpointing, model__dropout=0.3, **changes).train()
    torch.manual_seed(3)
    loss = row_losses(model(TOKENS, 4, row_keys=keys), TOKENS).sum()
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    return [loss, *(parameter.grad for parameter in model.parameters())], counter.get_total_flops()


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("block", blocks.KINDS)
def test_losses_and_gradients_are_bit_equal(block, checkpointing, keyed, precision):
    """With progressive blocks, two of them asleep, and dropout's masks from torch's generator or from keys."""
    keys = row_keys(len(TOKENS)) if keyed else None
    kept, _ = backward("none", keys, model__block=block, engine__precision=precision)
    again, _ = backward(checkpointing, keys, model__block=block, engine__precision=precision)
    for one, other in zip(kept, again, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def test_selective_computes_no_matrix_product_again_and_full_all_of_the_forward_pass():
    """Against torch's FLOP counter: four blocks' forward pass is what full adds, and selective adds nothing."""
    flops = {mode: backward(mode, None)[1] for mode in ("none", "selective", "full")}
    model = tiny.config().model
    # Attention by products on a CPU leaves out a quarter: what the first half of the positions does not see.
    products = 2 * 12 * model.width**2 + 3 * model.width * model.context
    assert flops["selective"] == flops["none"]
    assert flops["full"] - flops["none"] == 4 * products * TOKENS.numel()
