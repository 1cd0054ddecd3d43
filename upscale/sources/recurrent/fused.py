"""The recurrent sources on a GPU: all steps of all rows of all lanes in one launch of one Triton kernel.

One program instance walks one tile of `ROWS` rows of one lane through the whole row: two table gathers, the recurrent
product, the gates, the head and the draw of a token a step. Nothing is shared between instances and every element of a
product is summed in the order of its inner index, in IEEE arithmetic (no TF32): so a row's tokens depend neither on the
lanes and rows that share the launch nor on the row's place in its tile. `upscale.sources.recurrent` defines what is
computed; sums are ordered differently here than there, so in float32 the two part where two tokens nearly tie.

Products and sums outside of matrix products are rounded one by one (`enable_fp_fusion=False`): Triton's default differs
between versions, and with it rows would. The matrix products are fused multiply-adds either way, so this costs nothing:
12 of 1036 of them become two instructions each.

Widths are filled up with zeros to powers of two (a hidden unit without weights stays 0), and the vocabulary with tokens
of probability 0. The hidden state lies in memory, in two copies of which one is read and one is written, since each
column of the product reads all of it; it never leaves the cache. The uniform numbers of the draws are made beforehand
by `upscale.randomness.streams`: 4 bytes a token, 2 MB for 1024 rows, are less than the tables, and the bits are those
of every other device without a second implementation.

Tiles are small so that few lanes keep many multiprocessors busy, and equally small in every world: the sum over the
distribution is a tree whose shape follows the tile, so another tile might draw other tokens where two nearly tie.

What to expect, by arithmetic and not measured: at width 1024 (hidden 102, filled up to 128) one of 8 GPUs has 8 lanes
of 16 rows, which are 32 instances on the 132 multiprocessors of an H200. A step is 4 x 128 x (512 + 256) = 0.4 M
multiply-adds an instance, 3 100 cycles at 128 a cycle, 1.8 us at 1.75 GHz; and it reads 390 KB of weights, which stay
in the L2 cache, 3.5 us at 64 bytes a cycle. 512 steps are then 1.8 ms if the two overlap and 2.7 ms if not, and waiting
for memory adds to it; tiles of 16 rows would compute for 3.6 ms on 8 multiprocessors. Still smaller tiles read as much.
One GPU with all 64 lanes has 256 instances that read 51 GB from the cache, about 10 ms, in a step of two seconds.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from upscale.sources.recurrent.program import Program

ROWS, UNITS, DEPTH = 4, 64, 32
TABLE_ROWS, TABLE_DEPTH = 16, 16
LEAST_WIDTH = 64


def write(
    program: Program, conditions: torch.Tensor, seeds: torch.Tensor, heights: torch.Tensor | None, temperature: float
) -> torch.Tensor:
    """Tokens (L, rows, length) int32, each row after its seed.

    `conditions` is (L, rows, length), `seeds` (L, rows, seed tokens), `heights` (L, rows, length - seed tokens) in
    (0, 1], or None where the likeliest token is taken. Four gates make an LSTM and three a GRU, in PyTorch's order.
    """
    lanes, rows, length = conditions.shape
    vocabulary, half = program.embedding.shape[1:]
    hidden = program.weight_hidden.shape[2]
    gates = program.weight_hidden.shape[1] // hidden
    wide, inner, tokens_wide = (max(LEAST_WIDTH, triton.next_power_of_2(size)) for size in (hidden, half, vocabulary))
    blocks = triton.cdiv(rows, ROWS)

    def by_gate(tensor: torch.Tensor) -> torch.Tensor:
        return filled_to(tensor.unflatten(1, (gates, hidden)), 2, wide)

    biases, candidate_bias = by_gate(program.bias_input), by_gate(program.bias_hidden)
    if gates == 4:
        biases += candidate_bias
    else:
        biases[:, :2] += candidate_bias[:, :2]
    candidate_bias = candidate_bias[:, -1].contiguous()
    tables = _tables(program, by_gate, biases.flatten(1), inner, tokens_wide)
    recurrent = filled_to(by_gate(program.weight_hidden).mT, 2, wide).contiguous()
    scale = temperature if temperature > 0 else 1.0
    head = filled_to(filled_to(program.head_weight.mT, 1, wide), 2, tokens_wide) / scale
    head_bias = filled_to(program.head_bias / scale, 1, tokens_wide, -torch.inf)

    tokens = torch.zeros(lanes, blocks * ROWS, length, dtype=torch.int32, device=conditions.device)
    tokens[:, :rows, : seeds.shape[2]] = seeds
    read = torch.zeros_like(tokens)
    read[:, :rows] = conditions
    state = head.new_zeros(lanes, blocks, 3, ROWS, wide)
    met = head.new_ones(1) if heights is None else filled_to(heights.to(head.dtype), 1, blocks * ROWS, 1.0)
    _walk[(lanes, blocks)](
        tables,
        recurrent,
        candidate_bias,
        head,
        head_bias,
        read,
        met,
        tokens,
        state,
        length,
        seeds.shape[2],
        GATES=gates,
        HIDDEN=wide,
        VOCABULARY=tokens_wide,
        GREEDY=heights is None,
        ROWS=ROWS,
        UNITS=UNITS,
        DEPTH=DEPTH,
        num_warps=8,
        enable_fp_fusion=False,
    )
    return tokens[:, :rows]


def filled_to(tensor: torch.Tensor, dim: int, size: int, value: float = 0.0) -> torch.Tensor:
    """The tensor with `value` behind it along one dimension, up to `size`."""
    filling = [0, 0] * tensor.ndim
    filling[2 * (tensor.ndim - 1 - dim) + 1] = size - tensor.shape[dim]
    return torch.nn.functional.pad(tensor, filling, value=value)


def _tables(program: Program, by_gate, biases: torch.Tensor, inner: int, tokens_wide: int) -> torch.Tensor:
    """(L, 2, vocabulary, gates * hidden), filled up: what each token of x, and of z, adds to the gates.

    Not by torch.bmm, whose kernel, and with it the rounding, is chosen by the number of lanes.
    """
    lanes, _, half = program.embedding.shape
    columns = biases.shape[1]
    embedding = filled_to(filled_to(program.embedding, 1, tokens_wide), 2, inner)
    sides = [
        filled_to(by_gate(weight).permute(0, 3, 1, 2).flatten(2), 1, inner)
        for weight in program.weight_input.split(half, dim=-1)
    ]
    weights = torch.stack(sides, dim=1)
    both = torch.stack([biases, torch.zeros_like(biases)], dim=1)
    tables = weights.new_empty(lanes, 2, tokens_wide, columns)
    _table[(2 * lanes, tokens_wide // TABLE_ROWS, triton.cdiv(columns, UNITS))](
        embedding,
        weights,
        both,
        tables,
        columns,
        VOCABULARY=tokens_wide,
        INNER=inner,
        ROWS=TABLE_ROWS,
        UNITS=UNITS,
        DEPTH=TABLE_DEPTH,
        enable_fp_fusion=False,
    )
    return tables


@triton.jit
def _table(
    embedding,
    weights,
    biases,
    tables,
    columns,
    VOCABULARY: tl.constexpr,
    INNER: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """One tile of a table: embedding @ weights + bias."""
    table = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(2) * UNITS + tl.arange(0, UNITS)
    inside = column < columns
    embedding += table // 2 * VOCABULARY * INNER
    weights += table * INNER * columns
    total = tl.load(biases + table * columns + column, mask=inside, other=0)[None, :]
    total = tl.broadcast_to(total, (ROWS, UNITS))
    for depth in range(0, INNER, DEPTH):
        k = depth + tl.arange(0, DEPTH)
        left = tl.load(embedding + token[:, None] * INNER + k[None, :])
        right = tl.load(weights + k[:, None] * columns + column[None, :], mask=inside[None, :], other=0)
        total = tl.dot(left, right, total, input_precision="ieee", out_dtype=total.dtype)
    place = (table * VOCABULARY + token[:, None]) * columns + column[None, :]
    tl.store(tables + place, total, mask=inside[None, :])


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _tanh(x):
    return 2 * _sigmoid(2 * x) - 1


@triton.jit
def _advance(
    x_row,
    z_row,
    read,
    written,
    memory,
    recurrent,
    candidate_bias,
    GATES: tl.constexpr,
    HIDDEN: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """One step of the cell, `UNITS` hidden units at a time.

    `x_row` and `z_row` (ROWS, 1) point to the tokens' rows of the tables, `read` and `written` to the hidden states.
    """
    row = tl.arange(0, ROWS)[:, None] * HIDDEN
    for start in range(0, HIDDEN, UNITS):
        unit = start + tl.arange(0, UNITS)[None, :]
        first = tl.load(x_row + unit) + tl.load(z_row + unit)
        second = tl.load(x_row + HIDDEN + unit) + tl.load(z_row + HIDDEN + unit)
        third = tl.load(x_row + 2 * HIDDEN + unit) + tl.load(z_row + 2 * HIDDEN + unit)
        if GATES == 4:
            fourth = tl.load(x_row + 3 * HIDDEN + unit) + tl.load(z_row + 3 * HIDDEN + unit)
        else:
            fourth = tl.broadcast_to(tl.load(candidate_bias + unit), (ROWS, UNITS))
        for depth in range(0, HIDDEN, DEPTH):
            k = depth + tl.arange(0, DEPTH)
            before = tl.load(read + row + k[None, :])
            tile = recurrent + k[:, None] * HIDDEN + unit
            size: tl.constexpr = HIDDEN * HIDDEN
            first = tl.dot(before, tl.load(tile), first, input_precision="ieee", out_dtype=first.dtype)
            second = tl.dot(before, tl.load(tile + size), second, input_precision="ieee", out_dtype=first.dtype)
            if GATES == 4:
                third = tl.dot(before, tl.load(tile + 2 * size), third, input_precision="ieee", out_dtype=first.dtype)
                fourth = tl.dot(before, tl.load(tile + 3 * size), fourth, input_precision="ieee", out_dtype=first.dtype)
            else:
                fourth = tl.dot(before, tl.load(tile + 2 * size), fourth, input_precision="ieee", out_dtype=first.dtype)
        if GATES == 4:  # enter, forget, candidate, leave
            kept = tl.load(memory + row + unit)
            kept = _sigmoid(second) * kept + _sigmoid(first) * _tanh(third)
            tl.store(memory + row + unit, kept)
            after = _sigmoid(fourth) * _tanh(kept)
        else:  # reset, update, candidate of the input and of the state
            candidate = _tanh(third + _sigmoid(first) * fourth)
            after = candidate + _sigmoid(second) * (tl.load(read + row + unit) - candidate)
        tl.store(written + row + unit, after)


@triton.jit
def _drawn(
    state,
    head,
    head_bias,
    height,
    GREEDY: tl.constexpr,
    HIDDEN: tl.constexpr,
    VOCABULARY: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """(ROWS,) tokens: the first of positive probability at which the distribution's sum reaches height * total."""
    row, token = tl.arange(0, ROWS)[:, None], tl.arange(0, VOCABULARY)[None, :]
    logits = tl.broadcast_to(tl.load(head_bias + token), (ROWS, VOCABULARY))
    for depth in range(0, HIDDEN, DEPTH):
        k = depth + tl.arange(0, DEPTH)
        left, right = tl.load(state + row * HIDDEN + k[None, :]), tl.load(head + k[:, None] * VOCABULARY + token)
        logits = tl.dot(left, right, logits, input_precision="ieee", out_dtype=logits.dtype)
    largest = tl.max(logits, axis=1)[:, None]
    if GREEDY:
        chosen = logits == largest
    else:
        # The sum is made as a tree, which need not be monotone to the last bit: hence the two looks at the share.
        shares = tl.exp(logits - largest)
        summed = tl.where(shares > 0, tl.cumsum(shares, axis=1), 0)
        chosen = (summed >= height[:, None] * tl.max(summed, axis=1)[:, None]) & (shares > 0)
    return tl.min(tl.where(chosen, token, VOCABULARY), axis=1)


@triton.jit
def _walk(
    tables,
    recurrent,
    candidate_bias,
    head,
    head_bias,
    conditions,
    heights,
    tokens,
    state,
    length,
    seed_tokens,
    GATES: tl.constexpr,
    HIDDEN: tl.constexpr,
    VOCABULARY: tl.constexpr,
    GREEDY: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """All steps of one tile of rows: program (lane, tile)."""
    lane, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    instance = lane * tl.num_programs(1) + tile
    width: tl.constexpr = GATES * HIDDEN
    tables += lane * 2 * VOCABULARY * width
    recurrent += lane * GATES * HIDDEN * HIDDEN
    candidate_bias += lane * HIDDEN
    head += lane * HIDDEN * VOCABULARY
    head_bias += lane * VOCABULARY
    state += instance * 3 * ROWS * HIDDEN
    memory = state + 2 * ROWS * HIDDEN
    row = instance * ROWS + tl.arange(0, ROWS)
    tokens, conditions = tokens + row * length, conditions + row * length
    height = tl.full((ROWS,), 1, state.dtype.element_ty)
    x = tl.load(tokens)
    for time in range(length - 1):
        read, written = state + time % 2 * ROWS * HIDDEN, state + (time + 1) % 2 * ROWS * HIDDEN
        x_row = tables + x[:, None] * width
        z_row = tables + (VOCABULARY + tl.load(conditions + time))[:, None] * width
        _advance(x_row, z_row, read, written, memory, recurrent, candidate_bias, GATES, HIDDEN, ROWS, UNITS, DEPTH)
        # All threads of the instance have written their part of the state before any reads it.
        tl.debug_barrier()
        if time + 1 < seed_tokens:
            x = tl.load(tokens + time + 1)
        else:
            if not GREEDY:
                height = tl.load(heights + row * (length - seed_tokens) + time + 1 - seed_tokens)
            x = _drawn(written, head, head_bias, height, GREEDY, HIDDEN, VOCABULARY, ROWS, DEPTH)
            tl.store(tokens + time + 1, x)
