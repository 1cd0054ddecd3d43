"""The sources of formal structures, against plain Python one token at a time, worked rows and themselves."""

import pytest
import torch

from tests.reference import formal_sources as reference
from tests.sources.common import assert_rows_are_those_of, assert_rows_do_not_depend_on_the_call, given
from upscale.sources.cells import CellsSource
from upscale.sources.minimalist import MinimalistSource, sentences
from upscale.sources.nesting import NestingSource
from upscale.sources.ww import WWSource

CASES = [
    (WWSource, dict(vocabulary=256)),
    (WWSource, dict(vocabulary=16, symbols=3, shortest=1, longest=4)),
    (MinimalistSource, dict(vocabulary=256)),
    (MinimalistSource, dict(vocabulary=14)),
    (CellsSource, dict(vocabulary=256)),
    (CellsSource, dict(vocabulary=300, rule="random", cells=24, cells_per_token=8)),
    (CellsSource, dict(vocabulary=16, rule=30, cells=12, width=6, cells_per_token=3, separator=False, burn_in=5)),
    (NestingSource, dict(vocabulary=256, structure="nest")),
    (NestingSource, dict(vocabulary=600, structure="nest", words=300, paired=True)),
    (NestingSource, dict(vocabulary=256, structure="cross", words=50)),
    (NestingSource, dict(vocabulary=256, structure="mix", words=9, zipf=False, open_probability=0.4)),
    (NestingSource, dict(vocabulary=256, structure="repetition", block=7)),
]


def name(value):
    return value.__name__ if isinstance(value, type) else "-".join(map(str, value.values()))


@pytest.mark.parametrize(("kind", "arguments"), CASES, ids=name)
def test_rows_are_those_of_the_definition_token_for_token(kind, arguments):
    """Against plain Python on the same random words."""
    oracle = getattr(reference, kind.__name__)(**arguments)
    assert_rows_are_those_of(oracle, kind(**arguments), length=90, vocabulary=arguments["vocabulary"])


@pytest.mark.parametrize(("kind", "arguments"), CASES[::3], ids=name)
def test_a_lanes_rows_do_not_depend_on_who_shares_the_call(kind, arguments):
    assert_rows_do_not_depend_on_the_call(kind(**arguments), vocabulary=arguments["vocabulary"])


def test_sentences_are_the_published_ones():
    """Against two sentences worked out by hand from the published generator: 24 in all, of 37 and 41 ids."""
    still = "0 0 5 0 10 5 0 0 2 0 4 5 0 9 5 5 0 11 7 5 0 0 12 5 0 5 0 0 4 5 0 9 5 5 5 5 5"
    moved = "0 0 0 2 0 4 5 0 9 5 5 5 0 10 1 5 0 0 5 0 11 7 5 0 0 12 5 0 6 5 0 0 4 5 0 9 5 5 5 5 5"
    assert {tuple(map(int, text.split())) for text in (still, moved)} < set(sentences())
    assert len(set(sentences())) == 24 and sorted(map(len, sentences())) == [37] * 12 + [41] * 12


def test_rule_110_on_a_ring_of_eight():
    """Against states worked out by hand, of the table that the oracle is made of."""
    for states in ("00010000 00110000 01110000 11010000 11110001", "10110010 11110111 00011100", "11111111 00000000"):
        rows = [list(map(int, state)) for state in states.split()]
        for before, after in zip(rows, rows[1:], strict=False):
            assert reference.next_state(before, 110) == after


def test_crossing_words_stand_twice():
    """Against counts: where all pairs fit, every word of a row stands an even number of times."""
    stream, conditions, seeds = given(4, 8, 400)
    source = NestingSource(vocabulary=256, structure="cross", open_probability=0.2)
    rows = source.write(stream, conditions, seeds).flatten(0, 1)
    odd = torch.stack([torch.bincount(row.long(), minlength=256) % 2 for row in rows]).sum(dim=1)
    assert odd.float().mean() < 6  # those whose second place lies beyond the row


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        (WWSource, dict(symbols=257), "symbols is 257; allowed: 1 to the vocabulary .256."),
        (WWSource, dict(shortest=9, longest=8), "shortest is 9, longest 8; allowed: 1 or more, shortest to longest"),
        (MinimalistSource, dict(vocabulary=13), "vocabulary is 13; allowed: at least 14"),
        (CellsSource, dict(rule=256), "rule is 256; allowed: 0 to 255, or random"),
        (CellsSource, dict(cells=2), "cells is 2; allowed: 3 or more"),
        (CellsSource, dict(width=65), "width is 65; allowed: 1 to cells .64."),
        (CellsSource, dict(cells_per_token=5), "cells_per_token is 5; allowed: a divisor of 64, at most 14"),
        (CellsSource, dict(cells_per_token=8), "vocabulary is 256; allowed: at least 257"),
        (NestingSource, dict(structure="flat"), "structure is 'flat'; allowed: nest, cross, mix, repetition"),
        (NestingSource, dict(structure="nest", words=129, paired=True), "words is 129; allowed: 1 to 128"),
        (NestingSource, dict(structure="mix", paired=True, words=9), "paired is for structure nest, not mix"),
        (NestingSource, dict(structure="mix", cross_share=2.0), "cross_share 2.0; allowed: 0 to 1 each"),
        (NestingSource, dict(structure="repetition", block=0), "block is 0; allowed: 1 or more"),
    ],
)
def test_mistakes_are_named(kind, arguments, words):
    with pytest.raises(ValueError, match=words):
        kind(**{"vocabulary": 256, **arguments})
