"""Philox 4x32-10 in one Triton launch: the words of `upscale.randomness.streams` on a GPU, bit for bit.

The same in PyTorch's operations are some hundred launches over int64 tensors for each purpose.
"""

import torch
import triton
import triton.language as tl

COUNTERS = 1024


def words(out: torch.Tensor, key: tuple[int, int], purpose: int, rounds: torch.Tensor, lanes: torch.Tensor) -> None:
    """Fill `out`, (L, blocks, 4) int64 or float32, with words, the 8 low bits cut off for float32.

    `rounds` and `lanes` are (L,) int64 in [0, 2^32).
    """
    blocks = out.shape[1]
    _words[(len(rounds), triton.cdiv(blocks, COUNTERS))](
        out,
        rounds,
        lanes,
        blocks,
        *key,
        int(purpose),
        SHIFT=8 if out.dtype == torch.float32 else 0,
        COUNTERS=COUNTERS,
        enable_fp_fusion=False,
    )


# Not specialised: Triton would make a constant of an argument that equals 1, and compile again for multiples of 16.
@triton.jit(do_not_specialize=["blocks", "key_low", "key_high", "purpose"])
def _words(out, rounds, lanes, blocks, key_low, key_high, purpose, SHIFT: tl.constexpr, COUNTERS: tl.constexpr):
    pair = tl.program_id(0)
    block = tl.program_id(1) * COUNTERS + tl.arange(0, COUNTERS)
    zero = tl.zeros((COUNTERS,), tl.uint32)
    first, second = block.to(tl.uint32), zero + purpose.to(tl.uint32)
    third, fourth = zero + tl.load(rounds + pair).to(tl.uint32), zero + tl.load(lanes + pair).to(tl.uint32)
    low, high = zero + key_low.to(tl.uint32), zero + key_high.to(tl.uint32)
    for _ in tl.static_range(10):
        former_first, former_third = first, third
        first = tl.umulhi(former_third, zero + 0xCD9E8D57) ^ second ^ low
        third = tl.umulhi(former_first, zero + 0xD2511F53) ^ fourth ^ high
        second, fourth = former_third * (zero + 0xCD9E8D57), former_first * (zero + 0xD2511F53)
        low, high = low + (zero + 0x9E3779B9), high + (zero + 0xBB67AE85)
    place = out + (pair.to(tl.int64) * blocks + block) * 4
    inside = block < blocks
    kind = out.dtype.element_ty
    tl.store(place, (first >> SHIFT).to(kind), mask=inside)
    tl.store(place + 1, (second >> SHIFT).to(kind), mask=inside)
    tl.store(place + 2, (third >> SHIFT).to(kind), mask=inside)
    tl.store(place + 3, (fourth >> SHIFT).to(kind), mask=inside)
