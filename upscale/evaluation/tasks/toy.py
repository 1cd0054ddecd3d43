"""toy and toy2: sentences of two context-free grammars."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from upscale.evaluation.tasks.generated import GeneratedTask

Grammar = Mapping[str, Sequence[tuple[float, str]]]


def _uniform(*productions: str) -> list[tuple[float, str]]:
    return [(1 / len(productions), production) for production in productions]


# Symbols are in angle brackets; a production is chosen with the probability before it.
ENGLISH: Grammar = {
    "<s>": _uniform(
        "<s> <adv>", "<np> <vp>", "<np> <vp> <prep> <np>", "<np> <vp> ( <prep> <np> )", "<np> <vp> <con> <s>",
        "<np> <vp> ( <con> <s> )",
    ),
    "<np>": _uniform("a <noun>", "the <noun>", "a <adj> <noun>", "the <adj> <noun>"),
    "<vp>": _uniform("walked", "walks", "ran", "runs", "goes", "went"),
    "<adv>": _uniform("briefly", "quickly", "impatiently"),
    "<prep>": _uniform("on", "with", "to"),
    "<con>": _uniform("while", "but"),
    "<noun>": _uniform("mouse", "bunny", "cat", "dog", "man", "woman", "person"),
    "<adj>": _uniform("short", "quick", "busy", "nice", "gorgeous"),
}  # fmt: skip

ARITHMETIC: Grammar = {
    "<exp>": [(0.2, "<exp> + <add>"), (0.2, "<exp> - <add>"), (0.6, "<add>")],
    "<add>": [(0.2, "<add> * <mul>"), (0.2, "<add> / <mul>"), (0.6, "<mul>")],
    "<mul>": [(0.2, "<group> ^ <mul>"), (0.8, "<group>")],
    "<group>": [(0.8, "<var>"), (0.2, "(<exp>)")],
    "<var>": _uniform("x", "y", "z"),
}

_SYMBOL = re.compile(r"(<[a-z]+>)")


def expand(grammar: Grammar, start: str, random: np.random.Generator) -> str:
    """One sentence of a context-free grammar, from the symbol `start`."""
    pending, sentence = [start], []
    while pending:
        part = pending.pop()
        if part in grammar:
            pending.extend(reversed(_SYMBOL.split(_choose(grammar[part], random.random()))))
        else:
            sentence.append(part)
    return "".join(sentence)


def _choose(productions: Sequence[tuple[float, str]], draw: float) -> str:
    for probability, production in productions:
        draw -= probability
        if draw < 0:
            return production
    return productions[-1][1]  # the probabilities add up to 1 only up to rounding


def toy_string(random: np.random.Generator) -> bytes:
    """A sentence of the small English grammar."""
    return expand(ENGLISH, "<s>", random).encode()


def toy2_string(random: np.random.Generator) -> bytes:
    """An arithmetic expression over x, y and z."""
    return expand(ARITHMETIC, "<exp>", random).encode()


# 25.6559 bits a derivation, less 0.1279 for where an adverb attaches, per 47.0111 characters. A sentence of m adverbs
# after k conjunctions that opened no bracket has C(k + m, m) derivations, all equally likely.
TOY = GeneratedTask(
    name="toy",
    definition="sentences of a small English grammar",
    optimal_bits_per_character=0.54302,
    delimited=True,
    string=toy_string,
)
TOY2 = GeneratedTask(
    name="toy2",
    definition="arithmetic expressions over x, y and z",
    optimal_bits_per_character=50.757 / 38.909,
    delimited=True,
    string=toy2_string,
)
