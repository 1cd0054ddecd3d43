"""The random streams, against the published vectors of Philox, plain Python integers, and the laws they must follow."""

import math
import subprocess
import sys

import pytest
import torch

import upscale.randomness.streams
from tests.reference.philox import word
from upscale.randomness.streams import Purpose, Stream, philox


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers(counter, key, words):
    """Against the known-answer vectors for philox4x32-10 that Random123 publishes."""

    def numbers(text):
        return [int(part, 16) for part in text.split()]

    given = [torch.tensor([number]) for number in numbers(counter)]
    assert [int(word) for word in philox(given, tuple(numbers(key)))] == numbers(words)


def test_words_are_those_of_their_counters():
    """Against Philox in plain Python integers: which word belongs to which seed, lane, round, purpose and position."""
    seed = (7 << 32) + 5
    lanes, rounds = [0, 3, 2**32 - 1], [9, 0, 12345]
    bits = Stream(seed, lanes, rounds).bits(Purpose.EMBEDDING, 11)
    expected = [
        [word(seed, lane, number, Purpose.EMBEDDING, position) for position in range(11)]
        for lane, number in zip(lanes, rounds, strict=True)
    ]
    assert bits.dtype == torch.int64
    assert bits.tolist() == expected


def test_a_draw_depends_on_its_pair_alone(monkeypatch):
    """Against the same draw for one pair at a time, for fewer numbers, for some pairs, in passes of other sizes."""
    stream = Stream(11, range(5), [4, 4, 0, 1, 2])
    bits = stream.bits(Purpose.TOKEN, 1003)
    for i in range(5):
        alone = Stream(11, [i], [int(stream.rounds[i])])
        assert torch.equal(alone.bits(Purpose.TOKEN, 1003), bits[i : i + 1])
    assert torch.equal(stream.bits(Purpose.TOKEN, 78), bits[:, :78])
    assert torch.equal(stream.at([3, 1]).bits(Purpose.TOKEN, 1003), bits[[3, 1]])
    for counters in (1, 100, 700, 1 << 20):
        monkeypatch.setattr(upscale.randomness.streams, "_COUNTERS_PER_PASS", counters)
        assert torch.equal(stream.bits(Purpose.TOKEN, 1003), bits)


def test_a_stream_keeps_its_rounds():
    """Against the words before its maker counted on: lanes keep one tensor of rounds and add to it."""
    rounds = torch.zeros(1, dtype=torch.int64)
    stream = Stream(1, [0], rounds)
    before = stream.bits(Purpose.TRAIN, 4)
    rounds += 1
    assert torch.equal(stream.bits(Purpose.TRAIN, 4), before)


def test_no_two_keys_share_their_numbers():
    """Changing any one of seed (either half), lane, round or purpose changes the words, all of them but by chance."""
    start = Stream(1, [0], [0]).bits(Purpose.TOKEN, 4096)
    others = [
        Stream(2, [0], [0]).bits(Purpose.TOKEN, 4096),
        Stream(1 + (1 << 32), [0], [0]).bits(Purpose.TOKEN, 4096),
        Stream(1, [1], [0]).bits(Purpose.TOKEN, 4096),
        Stream(1, [0], [1]).bits(Purpose.TOKEN, 4096),
        Stream(1, [0], [0]).bits(Purpose.ENRICH, 4096),
    ]
    words = torch.cat([start, *others]).flatten()
    assert len(words.unique()) > len(words) - 10


def test_another_process_draws_the_same_numbers():
    """Against a fresh interpreter with another number of threads: nothing depends on the process."""
    code = (
        "import torch; from upscale.randomness.streams import *; torch.set_num_threads(1);"
        "s = Stream(3, [1, 2], [5, 6]);"
        "print(s.bits(1, 9).tolist(), s.uniform(2, 5).tolist(), s.normal(3, 5).tolist(), s.choice(4, 9, 5).tolist())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    s = Stream(3, [1, 2], [5, 6])
    mine = f"{s.bits(1, 9).tolist()} {s.uniform(2, 5).tolist()} {s.normal(3, 5).tolist()} {s.choice(4, 9, 5).tolist()}"
    assert printed.strip() == mine


def test_uniform_is_uniform_and_independent():
    """Against the uniform law: range, moments, 256 equal bins, and no correlation between neighbours of any kind."""
    numbers = Stream(5, range(8), [3] * 8).uniform(Purpose.TOKEN, 100, 500)
    assert numbers.shape == (8, 100, 500) and numbers.dtype == torch.float32
    assert numbers.min() >= 0 and numbers.max() < 1
    assert torch.equal(numbers * 2**24, (numbers * 2**24).round())
    count = numbers.numel()
    assert abs(numbers.double().mean() - 0.5) < 4 / math.sqrt(12 * count)
    bins = torch.histc(numbers, 256, 0, 1)
    assert abs(_chi_square(bins) - 255) < 5 * math.sqrt(2 * 255)

    centred = numbers.double() - 0.5
    following_round = Stream(5, range(8), [4] * 8).uniform(Purpose.TOKEN, 100, 500).double() - 0.5
    pairs = {
        "positions": (centred[..., 1:], centred[..., :-1]),
        "rows": (centred[:, 1:], centred[:, :-1]),
        "lanes": (centred[1:], centred[:-1]),
        "rounds": (centred, following_round),
    }
    for name, (left, right) in pairs.items():
        correlation = 12 * (left * right).mean()
        assert abs(correlation) < 4.5 / math.sqrt(left.numel()), name


def test_normal_is_normal():
    """Against the standard normal law: four moments, and the normal distribution function in 100 equal bins."""
    numbers = Stream(6, range(4), [0] * 4).normal(Purpose.EMBEDDING, 77, 999)
    assert numbers.shape == (4, 77, 999) and numbers.dtype == torch.float32
    numbers = numbers.double()
    error = 1 / math.sqrt(numbers.numel())
    assert abs(numbers.mean()) < 4 * error
    assert abs(numbers.pow(2).mean() - 1) < 4 * math.sqrt(2) * error
    assert abs(numbers.pow(3).mean()) < 4 * math.sqrt(15) * error
    assert abs(numbers.pow(4).mean() - 3) < 4 * math.sqrt(96) * error
    bins = torch.histc(torch.special.ndtr(numbers), 100, 0, 1)
    assert abs(_chi_square(bins) - 99) < 5 * math.sqrt(2 * 99)
    # The two numbers of one pair of words are independent.
    first, second = numbers[..., 0:998:2], numbers[..., 1:998:2]
    assert abs((first * second).mean()) < 5 / math.sqrt(first.numel())
    assert abs((first.pow(2) * second.pow(2)).mean() - 1) < 5 * math.sqrt(8) / math.sqrt(first.numel())


@pytest.mark.parametrize("high", [1, 2, 10, 256, 2760])
def test_integers_are_uniform(high):
    """Against the uniform law over [0, high)."""
    numbers = Stream(7, [0, 1], [0, 0]).integers(Purpose.SEED_ROW, high, 100, 1000)
    assert numbers.shape == (2, 100, 1000) and numbers.dtype == torch.int64
    assert numbers.min() >= 0 and numbers.max() < high
    if high > 1:
        counts = torch.bincount(numbers.flatten(), minlength=high)
        assert abs(_chi_square(counts) - (high - 1)) < 5 * math.sqrt(2 * (high - 1))


def test_choice_is_a_uniform_choice_without_replacement():
    """Against the uniform law over subsets: every index as often, every place in the order, all pairs alike."""
    chosen = Stream(8, range(30_000), [0] * 30_000).choice(Purpose.ENRICH, 6, 3)
    assert chosen.shape == (30_000, 3)
    assert all(len(set(row)) == 3 for row in chosen[:1000].tolist())
    ordered = torch.bincount((chosen * torch.tensor([36, 6, 1])).sum(1), minlength=216)
    assert (ordered > 0).sum() == 120
    assert abs(_chi_square(ordered[ordered > 0]) - 119) < 5 * math.sqrt(2 * 119)
    everything = Stream(8, range(3), [1] * 3).choice(Purpose.ENRICH, 2760, 2760)
    assert torch.equal(everything.sort().values, torch.arange(2760).expand(3, -1))
    assert torch.equal(Stream(8, range(3), [1] * 3).choice(Purpose.ENRICH, 2760, 138), everything[:, :138])


def test_purposes_are_32_bit_words():
    """Against the counter: a purpose must fit its word, and no two may be equal (the enumeration is `unique`)."""
    assert all(0 < purpose < 1 << 32 for purpose in Purpose)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Stream(-1, [0], [0]), "seed is -1; allowed"),
        (lambda: Stream(1 << 64, [0], [0]), "allowed: an integer from 0 to 2"),
        (lambda: Stream(0, [0, 1], [0]), "two equally long lists"),
        (lambda: Stream(0, [0], [0]).integers(1, 0, 3), "high is 0; allowed"),
        (lambda: Stream(0, [0], [0]).choice(1, 3, 4), "a choice of 4 out of 3"),
    ],
)
def test_mistakes_are_named(call, words):
    """Against the message: what was given and what is allowed."""
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_the_same_numbers():
    """Against the CPU: all exact draws are equal, normal numbers but for a last bit."""
    here, there = Stream(9, range(4), [2] * 4), Stream(9, range(4), [2] * 4, "cuda")
    assert torch.equal(there.bits(1, 1001).cpu(), here.bits(1, 1001))
    assert torch.equal(there.uniform(1, 1001).cpu(), here.uniform(1, 1001))
    assert torch.equal(there.integers(1, 2760, 1001).cpu(), here.integers(1, 2760, 1001))
    assert torch.equal(there.choice(1, 2760, 138).cpu(), here.choice(1, 2760, 138))
    torch.testing.assert_close(there.normal(1, 1001).cpu(), here.normal(1, 1001), rtol=2**-23, atol=2**-23)


def _chi_square(counts):
    """Pearson's statistic of counts against equal expectations."""
    counts = counts.double()
    return ((counts - counts.mean()) ** 2 / counts.mean()).sum().item()
