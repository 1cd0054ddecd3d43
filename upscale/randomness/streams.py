"""Counter-based random streams: any number of any draw is computed from its key, on any device, in any order.

The generator is Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). The key is the
run's seed; the counter is (index, purpose, round, lane). So a lane's round draws the same numbers whichever rank owns
the lane, whatever was drawn before, and nothing has to be stored to resume but the round.
"""

import math
from collections.abc import Sequence
from enum import IntEnum, unique

import torch

from upscale.machine.compiler import triton_found

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_CIPHER_ROUNDS = 10

# Counters per pass: on a CPU the handful of int64 temporaries should stay in a core's cache (measured: 2^16 is twice as
# fast as one pass), on a GPU fewer and larger launches win.
_COUNTERS_PER_PASS = 1 << 16
_COUNTERS_PER_PASS_ON_GPU = 1 << 22


@unique
class Purpose(IntEnum):
    """What a draw is for: the second counter word, so that two draws of one (lane, round) never share a counter.

    The values are part of what a seed means. Add new ones; never renumber, or a resumed run sees other rows.
    """

    START_CONSTANT = 1
    START_NOISE = 2
    SOURCE = 3
    ENRICH = 4
    SEED_ROW = 5
    SEED_OFFSET = 6
    RESET_COUNT = 7
    RESET_CONSTANT = 8
    RESET_NOISE = 9
    TRAIN = 10
    FRESH_CONDITION_CONSTANT = 11
    FRESH_CONDITION_NOISE = 12
    FRESH_SEED_CONSTANT = 13
    FRESH_SEED_NOISE = 14
    CONTROL_ORDER = 15
    CONTROL_STEP = 16

    MULTIPLIER = 32
    EMBEDDING = 33
    WEIGHT_INPUT = 34
    WEIGHT_HIDDEN = 35
    BIAS_INPUT = 36
    BIAS_HIDDEN = 37
    HEAD_WEIGHT = 38
    HEAD_BIAS = 39
    TOKEN = 40
    UNIFORM_ROW = 41
    CONDITION_EMBEDDING = 42
    POSITION_EMBEDDING = 43
    ATTENTION_IN = 44
    ATTENTION_OUT = 45
    FEEDFORWARD_IN = 46
    FEEDFORWARD_IN_BIAS = 47
    FEEDFORWARD_OUT = 48
    FEEDFORWARD_OUT_BIAS = 49
    PERMUTATION = 50
    DIRICHLET = 51
    DIRICHLET_COUNT = 52
    DIRICHLET_ENTRIES = 53
    AUTOMATON_STATES = 54
    AUTOMATON_SYMBOLS = 55
    AUTOMATON_EDGE_SHARE = 56
    AUTOMATON_EDGE = 57
    AUTOMATON_LABEL = 58
    UTM_SYMBOL = 59
    NCA_PERCEPTION = 60
    NCA_HIDDEN = 61
    NCA_OUTPUT = 62
    NCA_FILTER_COLOUR = 63
    NCA_FILTER_START = 64
    NCA_FILTER_NOISE = 65
    NCA_COLOUR = 66
    NCA_START = 67
    NCA_NOISE = 68
    DYCK_OPEN = 69
    DYCK_TYPE = 70
    LIST_VALUE = 71
    LIST_QUERY = 72
    LIST_FILL = 73
    STACK_PUSH = 74
    STACK_VALUE = 75
    SHUFFLE_CLOSE = 76
    WW_LENGTH = 77
    WW_SYMBOL = 78
    CELLS_START = 79
    CELLS_RULE = 80
    SENTENCE = 81
    NEST_OPEN = 82
    NEST_WORD = 83
    NEST_WORDS = 84
    NEST_DISTANCE = 85
    NEST_CROSS = 86
    REWRITE_TASK = 87
    REWRITE_ALPHABET = 88
    REWRITE_LENGTHS = 89
    REWRITE_PATTERN = 90
    REWRITE_ORDER = 91
    REWRITE_VALUE_LENGTH = 92
    REWRITE_VALUE = 93
    DYCK_PAIRS = 94

    DATA_ORDER = 128
    DROPOUT = 129
    PARAMETER = 130


def philox(counter: Sequence[torch.Tensor | int], key: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """Philox 4x32-10: four int64 tensors of 32-bit words for four counter words (broadcast together) and a key.

    `counter` holds int64 tensors (at least the first) or ints in [0, 2^32). Multiplication of int64 wraps, so the high
    word of a 32 x 32 bit product is (product >> 32) masked to 32 bits; low words are masked only where it matters.
    """
    device = torch.as_tensor(counter[0]).device
    first, second, third, fourth = (torch.as_tensor(word, device=device) for word in counter)
    first, second, third, fourth = torch.broadcast_tensors(first, second, third, fourth)
    for cipher_round in range(_CIPHER_ROUNDS):
        low, high = ((key[i] + cipher_round * _WEYL[i]) & _MASK for i in range(2))
        product_first = first * _MULTIPLIERS[0]
        product_third = third * _MULTIPLIERS[1]
        first = (product_third >> 32).bitwise_xor_(second).bitwise_xor_(low).bitwise_and_(_MASK)
        third = (product_first >> 32).bitwise_xor_(fourth).bitwise_xor_(high).bitwise_and_(_MASK)
        second, fourth = product_third, product_first
    return first, second.bitwise_and_(_MASK), third, fourth.bitwise_and_(_MASK)


class Stream:
    """The random numbers of L (lane, round) pairs.

    Every method takes the purpose first and returns one row per pair, `(L, ...)`, that depends on nothing but the seed,
    that pair, the purpose and the position: asking for more numbers leaves the first ones as they were. The bits, and
    all that is made of them by exact arithmetic (`uniform`, `integers`, `choice`), are the same on every device.

    `seed` is in [0, 2^64). `lanes` and `rounds` are equally long, of ints in [0, 2^32); any other two numbers may stand
    in for them (an epoch and a rank, a row and a block), as long as the purpose is the caller's own.
    """

    def __init__(
        self,
        seed: int,
        lanes: Sequence[int] | torch.Tensor,
        rounds: Sequence[int] | torch.Tensor,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"seed is {seed}; allowed: an integer from 0 to 2^64 - 1")
        self.seed = int(seed)
        self.device = torch.device(device)
        # Copies: a caller that counts its rounds further must not move a stream it has already made.
        self.lanes, self.rounds = (
            torch.as_tensor(numbers, dtype=torch.int64).to(self.device, non_blocking=True, copy=True)
            for numbers in (lanes, rounds)
        )
        if self.lanes.ndim != 1 or self.lanes.shape != self.rounds.shape:
            raise ValueError(
                f"lanes {tuple(self.lanes.shape)}, rounds {tuple(self.rounds.shape)}; allowed: two equally long lists"
            )

    def __len__(self) -> int:
        return len(self.lanes)

    def at(self, positions: Sequence[int] | torch.Tensor) -> "Stream":
        """The stream of some of the pairs, by position."""
        positions = torch.as_tensor(positions, dtype=torch.int64, device=self.device)
        return Stream(self.seed, self.lanes[positions], self.rounds[positions], self.device)

    def bits(self, purpose: int, count: int) -> torch.Tensor:
        """Random 32-bit words: (L, count) int64 in [0, 2^32)."""
        return self._words(purpose, count, torch.int64, shift=0)

    def uniform(self, purpose: int, *shape: int) -> torch.Tensor:
        """Uniform numbers with 24 random bits: (L, *shape) fp32 in [0, 1)."""
        words = self._words(purpose, math.prod(shape), torch.float32, shift=8)
        return (words * 2.0**-24).reshape(len(self), *shape)

    def _words(self, purpose: int, count: int, dtype: torch.dtype, shift: int) -> torch.Tensor:
        """(L, count) words >> shift as dtype, made pass by pass so that only this result is larger than a cache."""
        blocks = -(-count // 4)
        words = torch.empty(len(self), blocks, 4, dtype=dtype, device=self.device)
        key = (self.seed & _MASK, self.seed >> 32)
        if self.device.type == "cuda" and triton_found():
            from upscale.randomness import philox as fused

            fused.words(words, key, int(purpose), self.rounds, self.lanes)
            return words.view(len(self), blocks * 4)[:, :count]
        limit = _COUNTERS_PER_PASS if self.device.type == "cpu" else _COUNTERS_PER_PASS_ON_GPU
        lanes_per_pass = max(1, limit // max(1, blocks))
        for start in range(0, len(self), lanes_per_pass):
            some = slice(start, start + lanes_per_pass)
            for low in range(0, blocks, limit):
                index = torch.arange(low, min(blocks, low + limit), device=self.device)
                counter = (index, int(purpose), self.rounds[some, None], self.lanes[some, None])
                for place, word in enumerate(philox(counter, key)):
                    words[some, low : low + limit, place] = word >> shift if shift else word
        return words.view(len(self), blocks * 4)[:, :count]

    def normal(self, purpose: int, *shape: int) -> torch.Tensor:
        """Standard normal numbers: (L, *shape) fp32, by Box and Muller from two words for two numbers.

        Logarithm and cosine are taken in float64, so that devices, which round them differently, agree but for about
        one number in 10^7, by its last bit. The tails end at 6.66, where 2^-32 ends.
        """
        count = math.prod(shape)
        bits = self.bits(purpose, 2 * -(-count // 2)).to(torch.float64).view(len(self), -1, 2)
        radius = bits[..., 0].add(1).mul_(2.0**-32).log_().mul_(-2).sqrt_()
        angle = bits[..., 1].mul(2 * math.pi * 2.0**-32)
        pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
        return pairs.to(torch.float32).view(len(self), -1)[:, :count].reshape(len(self), *shape)

    def integers(self, purpose: int, high: int, *shape: int) -> torch.Tensor:
        """Uniform integers: (L, *shape) int64 in [0, high), high <= 2^31.

        The high word of bits * high: exactly uniform where high is a power of two, else to within high / 2^32.
        """
        if not 1 <= high <= 1 << 31:
            raise ValueError(f"high is {high}; allowed: 1 to 2^31")
        return ((self.bits(purpose, math.prod(shape)) * high) >> 32).reshape(len(self), *shape)

    def choice(self, purpose: int, population: int, count: int) -> torch.Tensor:
        """`count` of `population` indices without replacement, in random order: (L, count) int64.

        Every index gets a random word; the `count` smallest win. The index itself is the key's low half, so that no two
        keys are equal and every device sorts them alike.
        """
        if not 0 <= count <= population:
            raise ValueError(f"a choice of {count} out of {population} without replacement; allowed: 0 to {population}")
        keys = (self.bits(purpose, population) << 31) | torch.arange(population, device=self.device)
        return keys.sort(dim=-1).values[:, :count] & ((1 << 31) - 1)
