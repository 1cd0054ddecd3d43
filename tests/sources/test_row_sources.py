"""The pointwise, automaton and Dyck sources, against plain Python one token at a time, closed forms and themselves."""

import pytest
import torch

from tests.reference import row_sources as reference
from tests.sources.common import assert_rows_are_those_of, assert_rows_do_not_depend_on_the_call, given
from upscale.randomness.streams import Stream
from upscale.sources.automaton import AutomatonSource
from upscale.sources.dyck import DyckSource
from upscale.sources.nca import NCASource
from upscale.sources.pointwise import PointwiseSource
from upscale.sources.shuffle_dyck import ShuffleDyckSource
from upscale.sources.transformer import TransformerSource
from upscale.sources.utm import UTMSource

CASES = [
    (PointwiseSource, dict(vocabulary=256)),
    (PointwiseSource, dict(vocabulary=3)),
    (PointwiseSource, dict(vocabulary=256, variant="code")),
    (PointwiseSource, dict(vocabulary=5, variant="code")),
    (AutomatonSource, dict(vocabulary=256)),
    (AutomatonSource, dict(vocabulary=256, permute=False)),
    (AutomatonSource, dict(vocabulary=4)),
    (AutomatonSource, dict(vocabulary=300)),
    (DyckSource, dict(vocabulary=256)),
    (DyckSource, dict(vocabulary=256, brackets=128, open_probability=0.7, depth=3, permute=True)),
    (DyckSource, dict(vocabulary=2, brackets=1, open_probability=0.95, depth=1000)),
    (DyckSource, dict(vocabulary=256, brackets=5, depth=6, word_tokens=9)),
    (DyckSource, dict(vocabulary=256, variant="balanced")),
    (DyckSource, dict(vocabulary=300, variant="balanced", brackets=150, open_probability=0.7)),
    (DyckSource, dict(vocabulary=256, variant="delimited", pairs=[3, 9], open_probability=0.55, depth=4)),
    (DyckSource, dict(vocabulary=4, variant="delimited", brackets=1, pairs=[1, 2])),
    (DyckSource, dict(vocabulary=300, variant="delimited", pairs=[40, 50], open_probability=0.9, depth=256)),
    (ShuffleDyckSource, dict(vocabulary=256)),
    (ShuffleDyckSource, dict(vocabulary=6, brackets=3, depth=8, open_probability=0.51)),
]


def name(value):
    return value.__name__ if isinstance(value, type) else "-".join(map(str, value.values()))


@pytest.mark.parametrize(("kind", "arguments"), CASES, ids=name)
def test_rows_are_those_of_the_definition_token_for_token(kind, arguments):
    """Against plain Python on the same random words."""
    oracle = getattr(reference, kind.__name__)(**arguments)
    assert_rows_are_those_of(oracle, kind(**arguments), rows=6, vocabulary=arguments["vocabulary"])


@pytest.mark.parametrize(("kind", "arguments"), CASES[::3], ids=name)
def test_a_lanes_rows_do_not_depend_on_who_shares_the_call(kind, arguments):
    assert_rows_do_not_depend_on_the_call(kind(**arguments), vocabulary=arguments["vocabulary"])


def rows_of(source, lanes=20, rows=50, length=400, vocabulary=256):
    stream, conditions, seeds = given(lanes, rows, length, vocabulary)
    return source.write(stream, conditions, seeds).flatten(0, 1)


def test_pointwise_rows_repeat_tokens_as_often_as_a_dirichlet_half():
    """Against E[sum of p^2] = (alpha + 1) / (V alpha + 1), the probability that two tokens of a row agree."""
    rows = rows_of(PointwiseSource(vocabulary=16), vocabulary=16)
    agree = (rows[:, :200] == rows[:, 200:]).float().mean(dim=1)
    expected = 1.5 / (16 * 0.5 + 1)
    assert abs(agree.mean() - expected) < 4 * agree.std() / len(rows) ** 0.5


def test_the_codes_pointwise_rows_hold_at_most_19_tokens():
    """Against U{0, ..., 19}: at most 19 distinct tokens, two of twenty rows constant, all ids used by some row."""
    rows = rows_of(PointwiseSource(vocabulary=256, variant="code"), length=2000, rows=20)
    distinct = torch.tensor([len(row.unique()) for row in rows])
    assert 15 <= distinct.max() <= 19 and len(rows.unique()) == 256
    assert abs((distinct == 1).float().mean() - 0.1) < 4 * (0.1 * 0.9 / len(rows)) ** 0.5


def test_automata_have_ten_symbols_on_average():
    """Against the geometric law: a mean of 10 symbols, of which a walk sees fewer; without permute, the low ids."""
    rows = rows_of(AutomatonSource(vocabulary=256, permute=False))
    largest = rows.max(dim=1).values.float() + 1
    assert 5 < largest.mean() < 10 and largest.max() > 30


def test_automata_draw_their_symbols_from_the_whole_vocabulary():
    """Against uniform draws without replacement: every id is as often a row's symbol as any other."""
    rows = rows_of(AutomatonSource(vocabulary=64), vocabulary=64)
    low = rows_of(AutomatonSource(vocabulary=64, permute=False), vocabulary=64)
    distinct = torch.tensor([len(row.unique()) for row in rows])
    assert distinct.tolist() == [len(row.unique()) for row in low]
    share = distinct.float().mean() / 64
    seen = torch.stack([torch.bincount(row.long(), minlength=64) > 0 for row in rows]).float().mean(dim=0)
    assert (abs(seen - share) < 5 * (share * (1 - share) / len(rows)) ** 0.5).all()


def test_dyck_rows_are_nested_and_as_deep_as_allowed():
    """Against a stack machine that reads the row; the depth bound is met and never passed."""
    source = DyckSource(vocabulary=256, brackets=5, open_probability=0.6, depth=4)
    deepest = 0
    for row in rows_of(source, lanes=2, rows=10).tolist():
        stack = []
        for token in row:
            if token < 5:
                stack.append(token)
            else:
                assert stack.pop() == token - 5
            deepest = max(deepest, len(stack))
    assert deepest == 4


@pytest.mark.parametrize("length", [129, 130])
def test_balanced_rows_end_balanced(length):
    """Against a stack machine: every row of an even number of tokens ends empty, an odd one with one open."""
    source = DyckSource(vocabulary=256, variant="balanced", open_probability=0.6)
    for row in rows_of(source, lanes=2, rows=20, length=length).tolist():
        stack = []
        for token in row:
            if token < 64:
                stack.append(token)
            else:
                assert stack.pop() == token - 64
        assert len(stack) == length % 2


def test_delimited_strings_are_balanced_and_of_all_the_numbers_of_pairs():
    """Against a stack machine: between two marks a string of 3 to 5 pairs, equally often, never deeper than 2."""
    source = DyckSource(vocabulary=12, variant="delimited", brackets=5, open_probability=0.6, depth=2, pairs=[3, 5])
    found, deepest = [], 0
    for row in rows_of(source, lanes=2, rows=100, length=200).tolist():
        stack, pairs = [], 0
        assert row[0] == 10
        for before, token in zip(row, row[1:], strict=False):
            if token < 5:
                stack.append(token)
                pairs += 1
            elif token < 10:
                assert stack.pop() == token - 5
            elif token == 11:
                assert not stack
                found.append(pairs)
                pairs = 0
            assert (before == 11) == (token == 10)
            deepest = max(deepest, len(stack))
    assert set(found) == {3, 4, 5} and deepest == 2
    assert all(abs(found.count(pairs) / len(found) - 1 / 3) < 0.03 for pairs in (3, 4, 5)), len(found)


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        (PointwiseSource, dict(variant="published"), "variant is 'published'; allowed: paper, code"),
        (PointwiseSource, dict(vocabulary=1 << 16), "vocabulary is 65536; allowed: 1 to 32768"),
        (DyckSource, dict(brackets=129), "brackets is 129; allowed: 1 to half of the vocabulary .128."),
        (DyckSource, dict(open_probability=1.5), "open_probability is 1.5; allowed: 0 to 1"),
        (DyckSource, dict(depth=0), "depth is 0; allowed: 1 or more"),
        (DyckSource, dict(variant="cut"), "variant is 'cut'; allowed: words, balanced, delimited"),
        (DyckSource, dict(word_tokens=0), "word_tokens is 0; allowed: 1 or more"),
        (DyckSource, dict(variant="delimited", pairs=[5, 4]), r"pairs is \[5, 4\]; allowed: the fewest and the most"),
        (ShuffleDyckSource, dict(brackets=129), "brackets is 129; allowed: 1 to half of the vocabulary .128."),
        (ShuffleDyckSource, dict(depth=0), "depth is 0; allowed: 1 or more"),
        (ShuffleDyckSource, dict(open_probability=-0.1), "open_probability is -0.1; allowed: 0 to 1"),
    ],
)
def test_mistakes_are_named(kind, arguments, words):
    with pytest.raises(ValueError, match=words):
        kind(**{"vocabulary": 256, **arguments})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (PointwiseSource, dict()),
        (AutomatonSource, dict()),
        (DyckSource, dict()),
        (UTMSource, dict(memory=100, steps=1000)),
        (NCASource, dict()),
    ],
    ids=name,
)
def test_a_gpu_writes_the_cpus_rows(kind, arguments):
    """Against the CPU: whole-number sums agree, and a rounding of a logarithm hardly ever shows."""
    source = kind(vocabulary=256, **arguments)
    stream, conditions, seeds = given(8, 16, 200)
    there = Stream(stream.seed, stream.lanes, stream.rounds, "cuda")
    same = source.write(there, conditions.cuda(), seeds.cuda()).cpu() == source.write(stream, conditions, seeds)
    assert same.all(dim=-1).float().mean() > 0.99


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpus_transformer_rows_do_not_depend_on_who_shares_the_call():
    """Against the same lanes in calls of other numbers of lanes: equal bit for bit."""
    stream, conditions, seeds = given(40, 16, 100, seed_tokens=8)
    there = Stream(stream.seed, stream.lanes, stream.rounds, "cuda"), conditions.cuda(), seeds.cuda()
    source = TransformerSource(vocabulary=256, hidden=104, multiplier=(4.0, 4.0))
    together = source.write(*there)
    for some in ([0], [39], [2, 35], list(range(3, 20))):
        assert torch.equal(source.write(there[0].at(some), there[1][some], there[2][some]), together[some])
