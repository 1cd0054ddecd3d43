"""What the tests of sources share: noise to read, and the rule that a pair's rows are its own."""

import torch

from upscale.randomness.streams import Stream


def given(lanes, rows, length, vocabulary=256, seed_tokens=0, seed=1):
    """A stream with noise for conditions and seeds."""
    stream = Stream(seed, range(10, 10 + lanes), range(lanes))
    dtype = torch.uint8 if vocabulary <= 256 else torch.int16
    conditions = stream.integers(1000, vocabulary, rows, length).to(dtype)
    return stream, conditions, stream.integers(1001, vocabulary, rows, seed_tokens).to(dtype)


def assert_rows_are_those_of(reference, source, lanes=3, rows=4, length=60, vocabulary=256):
    """Token for token the reference's, in the type that the vocabulary asks for."""
    stream, conditions, seeds = given(lanes, rows, length, vocabulary, source.seed_tokens)
    written = source.write(stream, conditions, seeds)
    assert written.dtype == conditions.dtype and written.shape == conditions.shape
    assert written.tolist() == reference.write(stream, conditions, seeds).tolist()


def assert_rows_do_not_depend_on_the_call(source, rows=5, length=37, vocabulary=256):
    """Eight lanes in calls of 1, 2, 3 and 8, with one thread and two: equal bit for bit; no two lanes alike."""
    stream, conditions, seeds = given(8, rows, length, vocabulary, source.seed_tokens)
    together = source.write(stream, conditions, seeds)
    assert len({tuple(lane.flatten().tolist()) for lane in together}) == 8
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for some in ([7], [2, 5], [6, 1, 4], list(range(8))):
            alone = source.write(stream.at(some), conditions[some], seeds[some])
            assert torch.equal(alone, together[some]), (threads, some)
