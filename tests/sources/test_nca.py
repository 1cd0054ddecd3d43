"""The NCA source, against plain Python one cell at a time, recorded scores of the published code, and itself."""

import pytest
import torch

from tests.reference.nca import NCASource as Reference
from tests.sources.common import assert_rows_are_those_of, assert_rows_do_not_depend_on_the_call, given
from upscale.errors import UserError
from upscale.randomness.streams import Stream
from upscale.sources.nca import NCASource

PAPER = dict(vocabulary=10_002, colours=10, delimiters=True, permute=False, wrap_channels=True, band=(0.747, 2.0))


@pytest.mark.parametrize(
    "arguments",
    [
        dict(vocabulary=256, grid=6, burn_in=3),
        dict(vocabulary=256, grid=4, burn_in=0, permute=False, band=(0.0, 2.0), temperature=0.0, stride=2),
        dict(vocabulary=83, colours=3, grid=4, delimiters=True, band=(0.2, 0.9), temperature=0.1, identity_bias=0.5),
        dict(PAPER, grid=4, burn_in=2),
        dict(vocabulary=300, colours=6, grid=6, patch=(1, 3), wrap_channels=True, band=(0.1, 2.0)),
    ],
    ids=["default", "greedy", "delimiters", "paper", "patches"],
)
def test_rows_are_those_of_the_definition_token_for_token(arguments):
    """Against plain Python, with Python's gzip and normal distribution, on the same random words."""
    source = NCASource(**arguments)
    oracle = Reference(**arguments, ceiling=source.ceiling)
    assert_rows_are_those_of(oracle, source, lanes=2, rows=3, length=50, vocabulary=arguments["vocabulary"])


@pytest.mark.parametrize(
    "arguments", [dict(vocabulary=256), pytest.param(PAPER, marks=pytest.mark.slow)], ids=["default", "paper"]
)
def test_a_lanes_rows_do_not_depend_on_who_shares_the_call(arguments):
    source = NCASource(**arguments)
    assert_rows_do_not_depend_on_the_call(source, length=100, vocabulary=arguments["vocabulary"])


@pytest.mark.parametrize(
    ("colours", "quarter", "half", "three_quarters", "ceiling"),
    [(10, 0.320, 0.489, 0.569, 0.669), (4, 0.031, 0.198, 0.319, 0.426)],
)
def test_rules_are_as_complex_as_recorded(colours, quarter, half, three_quarters, ceiling):
    """Against scores of 600 rules of the published code: gzip's share of bytes. Bands: four standard errors of both."""
    vocabulary = colours**4
    source = NCASource(vocabulary=vocabulary, colours=colours, wrap_channels=True, band=(0.0, 1.999))
    assert abs(source.ceiling - ceiling) < 0.004
    stream = Stream(5, range(600), [0] * 600)
    scores = source._judged(stream, source._rules(stream)) * source.ceiling
    for share, recorded in ((0.25, quarter), (0.5, half), (0.75, three_quarters)):
        # A quantile's standard error in shares of the rules: sqrt(q (1 - q) / 600) for each of the two samples.
        error = 4 * (2 * share * (1 - share) / 600) ** 0.5
        low, high = torch.quantile(scores, torch.tensor([share - error, share + error], dtype=torch.float64))
        assert low - 0.002 <= recorded <= high + 0.002


def test_accepted_rules_lie_in_the_band():
    """Against the scores of the very rules used, over every row of a call."""
    source = NCASource(vocabulary=256, band=(0.45, 0.6))
    stream, conditions, seeds = given(4, 8, 100)
    judged, used = {}, []

    def judge(part, rules, judge=source._judged):
        scores = judge(part, rules)
        judged.update(zip((tuple(rule) for rule in rules[2].flatten(1).tolist()), scores.tolist(), strict=True))
        return scores

    def accepted(part, accepted=source._accepted):
        rules = accepted(part)
        used.extend(tuple(rule) for rule in rules[2].flatten(1).tolist())
        return rules

    source._judged, source._accepted = judge, accepted
    source.write(stream, conditions, seeds)
    assert len(set(used)) == 32 and all(0.45 < judged[rule] < 0.6 for rule in used)


def test_permuted_rows_are_the_others_renamed():
    """Against the unpermuted rows: one token for one token within a row, another code in another row."""
    stream, conditions, seeds = given(2, 3, 200)
    plain = NCASource(vocabulary=256, permute=False).write(stream, conditions, seeds).flatten(0, 1)
    renamed = NCASource(vocabulary=256).write(stream, conditions, seeds).flatten(0, 1)
    codes = []
    for before, after in zip(plain.tolist(), renamed.tolist(), strict=True):
        code = dict(zip(before, after, strict=True))
        assert [code[token] for token in before] == after and len(set(code.values())) == len(code)
        codes.append(code)
    assert codes[0] != codes[1]


def test_the_papers_vocabulary_has_delimiters_around_every_frame():
    """Against the paper's layout: 38 tokens a frame, 10000 first and 10001 last, 36 patches below 10000 between."""
    stream, conditions, seeds = given(1, 4, 114, 10_002)
    rows = NCASource(**PAPER).write(stream, conditions, seeds)
    assert rows.dtype == torch.int16
    frames = rows.view(4, 3, 38)
    assert (frames[..., 0] == 10_000).all() and (frames[..., -1] == 10_001).all() and frames[..., 1:-1].max() < 10_000


def test_an_impossible_band_is_an_error_and_not_a_wait():
    """Against the message: what was found, and what to choose from."""
    with pytest.raises(
        UserError, match=r"band \[1.2, 1.9\] accepts 0.0% of 300 random rules with 4 colours.*\[0.0, 2.0\]"
    ):
        NCASource(vocabulary=256, band=(1.2, 1.9))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(colours=5), "5 colours in patches of .2, 2. are 625 tokens; allowed: 256"),
        (dict(delimiters=True), "are 258 tokens; allowed: 256"),
        (dict(colours=1), "colours is 1"),
        (dict(grid=13), "grid is 13; allowed: 3 or more, a multiple of the patch's sides"),
        (dict(stride=0), "stride 0; allowed"),
        (dict(temperature=-1.0), "temperature is -1.0; allowed: 0"),
        (dict(identity_bias=float("nan")), "identity_bias is nan; allowed: -100 to 100"),
        (dict(band=(0.8, 0.7)), r"band is \[0.8, 0.7\]; allowed: two numbers"),
    ],
)
def test_mistakes_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        NCASource(**{"vocabulary": 256, **arguments})


def test_a_frame_larger_than_the_row_is_named():
    stream, conditions, seeds = given(1, 2, 30)
    with pytest.raises(ValueError, match="a frame has 36 tokens, .* at most the 30 of a row"):
        NCASource(vocabulary=256).write(stream, conditions, seeds)
