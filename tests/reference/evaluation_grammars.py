"""The tasks' grammars once more, as equations and parsers instead of generators, for means and entropy rates."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

ADVERBS = ("briefly", "quickly", "impatiently")
PREPOSITIONS = ("on", "with", "to")
CONJUNCTIONS = ("while", "but")
NOUNS = ("mouse", "bunny", "cat", "dog", "man", "woman", "person")
VERBS = ("walked", "walks", "ran", "runs", "goes", "went")
ADJECTIVES = ("short", "quick", "busy", "nice", "gorgeous")


def entropy(*probabilities: float) -> float:
    return -sum(probability * math.log2(probability) for probability in probabilities)


def champ_mean_length(base: int) -> float:
    """Exact mean characters of 256 consecutive numbers from a uniform start below 2^24 - 256, written in `base`."""
    starts, run = 2**24 - 256, 256
    total, digits = 0, 1
    while base ** (digits - 1) < starts + run:
        low = 0 if digits == 1 else base ** (digits - 1)
        numbers = np.arange(low, min(base**digits, starts + run), dtype=np.int64)
        # A number is written by every start in (number - run, number], as far as such starts exist.
        appearances = np.minimum(numbers, starts - 1) - np.maximum(numbers - run + 1, 0) + 1
        total += digits * int(appearances.sum())
        digits += 1
    return total / starts


def toy_means() -> tuple[float, float]:
    """Mean characters of a sentence and mean bits of a derivation, solved from the rules of the toy grammar."""

    def mean(words: tuple[str, ...]) -> float:
        return sum(map(len, words)) / len(words)

    noun_phrase = (1 + 3) / 2 + 1 + mean(NOUNS) + (mean(ADJECTIVES) + 1) / 2
    noun_phrase_bits = 2 + math.log2(7) + math.log2(5) / 2
    verb, preposition, conjunction, adverb = map(mean, (VERBS, PREPOSITIONS, CONJUNCTIONS, ADVERBS))
    clause, clause_bits = noun_phrase + 1 + verb, noun_phrase_bits + math.log2(6)
    # S = (S + adv) + clause + (clause prep NP) + (clause ( prep NP )) + (clause con S) + (clause ( con S )), over 6.
    constant = (1 + adverb) + 5 * clause + 2 * (1 + preposition + 1 + noun_phrase) + 2 * (1 + conjunction + 1) + 2 * 4
    constant_bits = 6 * math.log2(6) + math.log2(3) + 5 * clause_bits + 2 * (math.log2(3) + noun_phrase_bits) + 2 * 1
    return constant / 3, constant_bits / 3


def toy_ambiguity() -> float:
    """Mean bits of a derivation that its sentence does not tell: which clause each adverb belongs to.

    A chain of clauses, each the last one's unbracketed `con S`, has k + 1 of them; the m adverbs at its end belong to
    them from the inside out, C(k + m, m) ways, all equally likely. A clause adds an adverb with 1/6, else goes on the
    chain with 1/5; a chain's last clause opens another one in brackets with 1/4, so that a sentence has 4/3 chains.
    """
    chain = 0.0
    for k in range(60):
        for m in range(200):
            ways = math.comb(k + m, m)
            chain += 4 / 5 * (1 / 5) ** k * (5 / 6) ** (k + 1) * (1 / 6) ** m * ways * math.log2(ways)
    return 4 / 3 * chain


def toy_probability(sentence: str) -> float:
    """The probability of a sentence, summed over its derivations (an adverb may attach to any sentence it ends)."""
    words = sentence.split(" ")

    def noun_phrase(start: int) -> tuple[float, int]:
        """Probability and end of the noun phrase at `start`, (0, start) if there is none."""
        if start + 1 < len(words) and words[start] in ("a", "the"):
            if words[start + 1] in NOUNS:
                return 1 / 4 / 7, start + 2
            if words[start + 1] in ADJECTIVES and start + 2 < len(words) and words[start + 2] in NOUNS:
                return 1 / 4 / 5 / 7, start + 3
        return 0.0, start

    @cache
    def inside(start: int, end: int) -> float:
        if end - start < 3:
            return 0.0
        total = inside(start, end - 1) / 3 if words[end - 1] in ADVERBS else 0.0
        phrase, verb = noun_phrase(start)
        if phrase and verb < end and words[verb] in VERBS:
            total += phrase / 6 * tail(verb + 1, end)
        return total / 6

    def tail(start: int, end: int) -> float:
        """What follows noun phrase and verb: nothing, a prepositional phrase or a clause, perhaps in brackets."""
        if start == end:
            return 1.0
        if words[start] == "(" and words[end - 1] == ")":
            start, end = start + 1, end - 1
        elif words[start] == "(" or words[end - 1] == ")" and words[start : end - 1].count("(") == 0:
            return 0.0
        if words[start] in PREPOSITIONS:
            phrase, stop = noun_phrase(start + 1)
            return phrase / 3 if stop == end else 0.0
        return inside(start + 1, end) / 2 if words[start] in CONJUNCTIONS else 0.0

    return inside(0, len(words))


def toy2_means() -> tuple[float, float]:
    """Mean characters and bits of an expression (its derivation is unique), solved from the rules."""
    # Unknowns exp, add, mul, group, var; means = rules @ means + constant.
    rules = np.array(
        [
            [0.4, 1.0, 0.0, 0.0, 0.0],
            [0.0, 0.4, 1.0, 0.0, 0.0],
            [0.0, 0.0, 0.2, 1.0, 0.0],
            [0.2, 0.0, 0.0, 0.0, 0.8],
            [0.0, 0.0, 0.0, 0.0, 0.0],
        ]
    )
    characters = np.array([0.4 * 3, 0.4 * 3, 0.2 * 3, 0.2 * 2, 1])
    bits = np.array(
        [entropy(0.2, 0.2, 0.6), entropy(0.2, 0.2, 0.6), entropy(0.2, 0.8), entropy(0.8, 0.2), math.log2(3)]
    )
    return tuple(float(np.linalg.solve(np.eye(5) - rules, constant)[0]) for constant in (characters, bits))


AUTOMATON_EDGES = {0: "0z 1z 2x 3x 4y", 1: "1y 3y", 2: "3x", 3: "4x", 4: "0x 2z 3y"}
AUTOMATON_SYMBOLS = {"x": 248, "y": 224, "z": 122}


def automaton_bits(run: bytes) -> float:
    """-log2 probability of one run from state 0, filtering over the hidden states."""
    moves = np.zeros((256, 5, 5))
    for state, edges in AUTOMATON_EDGES.items():
        for edge in edges.split():
            moves[AUTOMATON_SYMBOLS[edge[1]], state, int(edge[0])] += 1 / len(edges.split())
    belief, bits = np.eye(5)[0], 0.0
    for symbol in run:
        belief = belief @ moves[symbol]
        bits -= math.log2(belief.sum())
        belief = belief / belief.sum()
    return bits
