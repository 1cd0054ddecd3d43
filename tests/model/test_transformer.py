"""The model against the paper's formulas (section 6.1), written out one matrix product at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests import tiny
from upscale.model import blocks, parametrization
from upscale.model.transformer import row_losses

TOKENS = torch.randint(0, 256, (3, 16), generator=torch.Generator().manual_seed(1))


def random_model(**changes):
    """A model whose gates and biases are not zero, so that a forgotten one shows."""
    model = parametrization.build(tiny.config(**changes))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def by_hand(model, tokens: torch.Tensor) -> torch.Tensor:
    """Post-norm blocks, ReLU, attention scaled by 1/k, x + a Block(x) behind the first two, head times 1/r."""
    p = dict(model.named_parameters())
    x = p["token_embedding.weight"][tokens] + p["position_embedding.weight"][: tokens.shape[1]]
    for index in range(6):
        gated = index >= 2
        name = f"blocks.{index}." + ("block." if gated else "")
        y, heads, size = x, 2, 16
        projected = y @ p[name + "attention.project_in.weight"].T
        mixed = torch.zeros_like(y)
        for head in range(heads):
            here = slice(head * size, (head + 1) * size)
            query, key, value = (projected[..., part * 32 : (part + 1) * 32][..., here] for part in range(3))
            scores = query @ key.transpose(1, 2) / size
            scores = scores.masked_fill(torch.ones(16, 16).triu(1).bool(), -torch.inf)
            mixed[..., here] = scores.softmax(-1) @ value
        attended = mixed @ p[name + "attention.project_out.weight"].T + p[name + "attention.project_out.bias"]
        y = F.layer_norm(y + attended, (32,), p[name + "attention_norm.weight"], p[name + "attention_norm.bias"])
        hidden = (y @ p[name + "feedforward_in.weight"].T + p[name + "feedforward_in.bias"]).clamp(min=0)
        fed = hidden @ p[name + "feedforward_out.weight"].T + p[name + "feedforward_out.bias"]
        y = F.layer_norm(y + fed, (32,), p[name + "feedforward_norm.weight"], p[name + "feedforward_norm.bias"])
        x = x + p[f"blocks.{index}.gate"] * y if gated else y
    return (x @ p["head.weight"].T + p["head.bias"]) * (64 / 32)


def test_forward_equals_the_formulas():
    model = random_model()
    torch.testing.assert_close(model(TOKENS, 6), by_hand(model, TOKENS), atol=2e-5, rtol=1e-5)


def rotated(x: torch.Tensor) -> torch.Tensor:
    """Heads (rows, positions, 16) as complex numbers: number i of the first half with number i of the second."""
    angles = torch.arange(x.shape[1])[:, None] * 10_000.0 ** (-torch.arange(8) / 8)
    turned = torch.complex(x[..., :8], x[..., 8:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], -1)


def normalised(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def prenorm_by_hand(model, tokens: torch.Tensor, block: str) -> torch.Tensor:
    """x + attention, x + feed-forward, each behind a norm; a gate scales what both add; a norm before the head."""
    p = dict(model.named_parameters())
    x = p["token_embedding.weight"][tokens]
    for index in range(6):
        name, before = f"blocks.{index}.block.", x
        y = normalised(x) * p[name + "attention_norm.weight"]
        parts = (y @ p[name + "attention.project_in.weight"].T).split(32, -1)
        mixed = torch.zeros_like(x)
        for head in range(2):
            here = slice(head * 16, (head + 1) * 16)
            query, key, value = (part[..., here] for part in parts)
            scale = 1 / 16
            if block == "prenorm":
                query, key, scale = normalised(query), normalised(key), 1 / 4
            scores = rotated(query) @ rotated(key).transpose(1, 2) * scale
            scores = scores.masked_fill(torch.ones(16, 16).triu(1).bool(), -torch.inf)
            mixed[..., here] = scores.softmax(-1) @ value
        x = x + mixed @ p[name + "attention.project_out.weight"].T
        hidden = (normalised(x) * p[name + "feedforward_norm.weight"]) @ p[name + "feedforward_in.weight"].T
        if block == "llama":
            half = hidden.shape[-1] // 2
            hidden = hidden[..., :half] * hidden[..., :half].sigmoid() * hidden[..., half:]
        else:
            hidden = hidden.clamp(min=0) ** 2
        x = x + hidden @ p[name + "feedforward_out.weight"].T
        x = before + p[f"blocks.{index}.gate"] * (x - before) if index >= 2 else x
    x = normalised(x) * p["final_norm.weight"]
    return (x @ p["head.weight"].T + p["head.bias"]) * (64 / 32)


@pytest.mark.parametrize("block", ["llama", "prenorm"])
def test_forward_of_prenorm_blocks_equals_the_formulas(block):
    model = random_model(model__block=block)
    torch.testing.assert_close(model(TOKENS, 6), prenorm_by_hand(model, TOKENS, block), atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("block", ["llama", "prenorm"])
def test_rotary_attention_depends_on_distances_only(block):
    """The same input at every position but the first: what attention sees is shifted by one position, no more."""
    attention = random_model(model__block=block).insides()[0].attention
    x = torch.randn(1, 1, 32).expand(1, 16, 32)
    query, key, _ = attention.queries_keys_values(x)
    products = (query @ key.transpose(-1, -2))[0, 0]
    for distance in range(16):
        along = products.diagonal(-distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), atol=1e-4, rtol=1e-4)


def test_rows_may_be_bytes_and_only_the_last_position():
    model = random_model()
    whole = model(TOKENS.to(torch.uint8), 6)
    torch.testing.assert_close(model(TOKENS, 6, last_only=True), whole[:, -1:])


@pytest.mark.parametrize("block", blocks.KINDS)
def test_a_position_does_not_see_later_ones(block):
    model, changed = random_model(model__block=block), TOKENS.clone()
    changed[:, 10:] = 7
    torch.testing.assert_close(model(changed, 6)[:, :10], model(TOKENS, 6)[:, :10])


@pytest.mark.parametrize("block", blocks.KINDS)
@pytest.mark.parametrize("active", [2, 4])
def test_waking_a_group_leaves_the_output_bit_equal(active, block):
    """As initialised: the gates of the blocks that wake are zero."""
    model = parametrization.build(tiny.config(model__block=block))
    assert torch.equal(model(TOKENS, active), model(TOKENS, active + 2))


@pytest.mark.parametrize("block", blocks.KINDS)
def test_sleeping_blocks_get_no_gradient_and_a_woken_gate_does(block):
    model = parametrization.build(tiny.config(model__block=block))
    row_losses(model(TOKENS, 4), TOKENS).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all((gradient is None) == name.startswith(("blocks.4", "blocks.5")) for name, gradient in gradients.items())
    assert gradients["blocks.2.gate"].abs() > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"model__compile": "true"},
        pytest.param({"model__compile": "true", "model__checkpointing": "selective"}, marks=pytest.mark.slow),
        pytest.param({"model__compile": "true", "model__checkpointing": "full"}, marks=pytest.mark.slow),
    ],
    ids=["compiled", "compiled, selective", "compiled, full"],
)
def test_compilation_changes_neither_output_nor_gradient(changes):
    """Against the plain eager model."""
    results = []
    for model in (random_model(), random_model(**changes)):
        if model.config.compile is True:
            model.compile_blocks()
        output = model(TOKENS, 6)
        row_losses(output, TOKENS).sum().backward()
        results.append((output, [parameter.grad for parameter in model.parameters()]))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=1e-5)
    for plain, switched in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(plain, switched, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("block", blocks.KINDS)
def test_waking_compiles_nothing_anew(block):
    """All plain and gated blocks share one graph, whatever the number of active blocks."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model = parametrization.build(tiny.config(model__block=block))
    model.compile_blocks()
    for active in (2, 4, 6):
        row_losses(model(TOKENS, active), TOKENS).sum().backward()
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.parametrize("block", blocks.KINDS)
def test_bf16_keeps_weights_and_logits_in_float32_and_stays_close(block):
    exact, rounded = random_model(model__block=block), random_model(model__block=block, engine__precision="bf16")
    output = rounded(TOKENS, 6)
    assert output.dtype == torch.float32 and {p.dtype for p in rounded.parameters()} == {torch.float32}
    assert not torch.equal(output, exact(TOKENS, 6))
    torch.testing.assert_close(output, exact(TOKENS, 6), atol=0.15, rtol=0.1)


def test_qk_norm_bounds_the_logits():
    """With normalised queries and keys of size k and scale 1/sqrt(k) no attention logit exceeds sqrt(k) times gains."""
    model = parametrization.build(tiny.config(model__qk_norm="true"))
    attention = model.blocks[0].attention
    x = 1000 * torch.randn(2, 16, 32)
    query, key, _ = attention.project_in(x).view(2, 16, 3, 2, 16).permute(2, 0, 3, 1, 4)
    logits = attention.query_norm(query) @ attention.key_norm(key).transpose(-1, -2) * attention.scale
    assert logits.abs().max() <= 4.001
    assert torch.isfinite(model(TOKENS, 6)).all()


def test_row_losses_are_summed_cross_entropy():
    logits = torch.randn(3, 16, 256)
    expected = -logits.log_softmax(-1).gather(-1, TOKENS[..., None]).squeeze(-1).sum(1)
    torch.testing.assert_close(row_losses(logits, TOKENS.to(torch.uint8)), expected)
