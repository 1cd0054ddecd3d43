"""Philox 4x32-10 in plain Python integers, one counter at a time, from Salmon et al. 2011."""


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Four 32-bit words for four counter words and two key words."""
    word = 1 << 32
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, word)
        high1, low1 = divmod(0xCD9E8D57 * c2, word)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % word, (k1 + 0xBB67AE85) % word
    return c0, c1, c2, c3


def word(seed: int, lane: int, round_number: int, purpose: int, position: int) -> int:
    """The word at a position of a stream: key = the seed's halves, counter = (block, purpose, round, lane)."""
    block, place = divmod(position, 4)
    return philox((block, purpose, round_number, lane), (seed % (1 << 32), seed >> 32))[place]
