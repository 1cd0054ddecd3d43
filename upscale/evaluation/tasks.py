"""The paper's synthetic tasks (Bloem 2025, arXiv 2506.20057): generators, delimiters and entropy rates.

A task is an endless supply of strings from one grammar, joined to one long string. Delimited tasks write "|" before
the first string and after every one. The grammars are those of the public code, which is where the paper and its code
differ: the published champ counts in hexadecimal although the paper speaks of digits, and bits writes True as "0".
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

DELIMITER = b"|"
CHARACTERS = 100_000

CHAMP_NUMBERS = 256
CHAMP_STARTS = 2**24 - CHAMP_NUMBERS

DYCK_OPEN = 7 / 16

NDFA_WORDS = (b"abc!", b"uvw!", b"klm!")
NDFA_STOP = 1 / 4

# The fixed automaton of the public code: for each state the edges (next state, byte written), taken uniformly.
AUTOMATON = (
    ((0, 122), (1, 122), (2, 248), (3, 248), (4, 224)),
    ((1, 224), (3, 224)),
    ((3, 248),),
    ((4, 248),),
    ((0, 248), (2, 122), (3, 224)),
)
AUTOMATON_RUN = 512

Grammar = Mapping[str, Sequence[tuple[float, str]]]


def _uniform(*productions: str) -> list[tuple[float, str]]:
    return [(1 / len(productions), production) for production in productions]


# Symbols are in angle brackets; a production is chosen with the probability before it.
TOY: Grammar = {
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

TOY2: Grammar = {
    "<exp>": [(0.2, "<exp> + <add>"), (0.2, "<exp> - <add>"), (0.6, "<add>")],
    "<add>": [(0.2, "<add> * <mul>"), (0.2, "<add> / <mul>"), (0.6, "<mul>")],
    "<mul>": [(0.2, "<group> ^ <mul>"), (0.8, "<group>")],
    "<group>": [(0.8, "<var>"), (0.2, "(<exp>)")],
    "<var>": _uniform("x", "y", "z"),
}

_SYMBOL = re.compile(r"(<[a-z]+>)")


@dataclass(frozen=True)
class Task:
    """One synthetic task.

    `optimal_bits_per_character` is the entropy rate for a reader who knows the grammar and its state. It ignores what
    learning the grammar inside one slice costs, so a zero-shot model cannot quite reach it; for toy and toy2, whose
    words and symbols must first be seen, it is far out of reach.
    """

    name: str
    definition: str
    optimal_bits_per_character: float
    delimited: bool
    string: Callable[[np.random.Generator], bytes]
    """Draws one string, without delimiter."""

    def generate(self, characters: int = CHARACTERS, *, seed: int = 0) -> bytes:
        """At least `characters` bytes that end with a whole string; the same for the same seed and task."""
        random = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        delimiter = DELIMITER if self.delimited else b""
        parts, length = [delimiter], len(delimiter)
        while length < characters:
            parts.append(self.string(random) + delimiter)
            length += len(parts[-1])
        return b"".join(parts)


def binary_entropy(probability: float) -> float:
    """Bits in one draw of a coin with this probability, strictly between 0 and 1."""
    return -probability * math.log2(probability) - (1 - probability) * math.log2(1 - probability)


def champ_string(random: np.random.Generator, form: str = "x") -> bytes:
    """256 consecutive integers from a random start, in lower-case hexadecimal (form "x") or decimal ("d")."""
    start = int(random.integers(CHAMP_STARTS))
    return "".join(format(number, form) for number in range(start, start + CHAMP_NUMBERS)).encode()


def champ_decimal_string(random: np.random.Generator) -> bytes:
    """`champ_string` in base 10, as the paper's text has it."""
    return champ_string(random, "d")


def dyck_string(random: np.random.Generator) -> bytes:
    """One opening bracket, then brackets that open with probability 7/16, until all are closed."""
    string, depth = bytearray(b"("), 1
    while depth:
        opens = random.random() < DYCK_OPEN
        string += b"(" if opens else b")"
        depth += 1 if opens else -1
    return bytes(string)


def ndfa_string(random: np.random.Generator) -> bytes:
    """s w^k s: one of three words, repeated k times with P(k) = (3/4)^k / 4."""
    word = NDFA_WORDS[random.integers(len(NDFA_WORDS))]
    return b"s" + word * int(random.geometric(NDFA_STOP) - 1) + b"s"


def aut_string(random: np.random.Generator) -> bytes:
    """512 symbols of the fixed five-state automaton, started in state 0."""
    symbols, state = bytearray(), 0
    for _ in range(AUTOMATON_RUN):
        edges = AUTOMATON[state]
        state, symbol = edges[random.integers(len(edges))]
        symbols.append(symbol)
    return bytes(symbols)


def expand(grammar: Grammar, start: str, random: np.random.Generator) -> str:
    """One sentence of a context-free grammar, from the symbol `start`."""
    pending, sentence = [start], []
    while pending:
        part = pending.pop()
        if part in grammar:
            pending.extend(reversed(_SYMBOL.split(_chosen(grammar[part], random.random()))))
        else:
            sentence.append(part)
    return "".join(sentence)


def _chosen(productions: Sequence[tuple[float, str]], draw: float) -> str:
    for probability, production in productions:
        draw -= probability
        if draw < 0:
            return production
    return productions[-1][1]  # the probabilities add up to 1 only up to rounding


def toy_string(random: np.random.Generator) -> bytes:
    """A sentence of the small English grammar."""
    return expand(TOY, "<s>", random).encode()


def toy2_string(random: np.random.Generator) -> bytes:
    """An arithmetic expression over x, y and z."""
    return expand(TOY2, "<exp>", random).encode()


def _written(bits: np.ndarray) -> bytes:
    return b"".join(b"0" if bit else b"1" for bit in bits)


def bits_string(random: np.random.Generator) -> bytes:
    """Two random words of 5 bits, then their xor, and, or and equality, True written as "0"."""
    first, second = random.integers(2, size=(2, 5)).astype(bool)
    return _written(np.concatenate([first, second, first ^ second, first & second, first | second, first == second]))


def bitsflip_string(random: np.random.Generator) -> bytes:
    """6 random bits, then the same bits in reverse."""
    word = random.integers(2, size=6).astype(bool)
    return _written(np.concatenate([word, word[::-1]]))


def bitsrep_string(random: np.random.Generator) -> bytes:
    """3 random bits, written three times."""
    return _written(random.integers(2, size=3).astype(bool)) * 3


def _table(*tasks: Task) -> dict[str, Task]:
    return {task.name: task for task in tasks}


# Rates are bits per string over mean characters per string, delimiter included. The two without a closed form are
# numeric. toy: 25.6559 bits a derivation, less 0.1269 for where an adverb attaches (exact inside probabilities, Monte
# Carlo over sentences), per 47.0111 characters; +- 0.00003. aut: exact filtering over its hidden states; +- 0.001.
TASKS: dict[str, Task] = _table(
    Task(
        "champ",
        "256 consecutive integers in hexadecimal, from a random start below 2^24",
        math.log2(CHAMP_STARTS) / 1519.9,
        True,
        champ_string,
    ),
    Task(
        "champ_decimal",
        "256 consecutive integers in decimal, from a random start below 2^24",
        math.log2(CHAMP_STARTS) / 1879.5,
        True,
        champ_decimal_string,
    ),
    Task(
        "dyck",
        "balanced brackets that open with probability 7/16",
        8 * binary_entropy(DYCK_OPEN) / 10,
        True,
        dyck_string,
    ),
    Task(
        "ndfa",
        "s w^k s with w one of abc! uvw! klm! and k geometric",
        (4 * binary_entropy(NDFA_STOP) + 3 / 4 * math.log2(3)) / 15,
        True,
        ndfa_string,
    ),
    Task("aut", "512 symbols of a fixed five-state automaton", 0.916, False, aut_string),
    Task("toy", "sentences of a small English grammar", 0.5430, True, toy_string),
    Task("toy2", "arithmetic expressions over x, y and z", 50.757 / 38.909, True, toy2_string),
    Task("bits", "two words of 5 bits, their xor, and, or and equality", 10 / 31, True, bits_string),
    Task("bitsflip", "6 random bits and their reverse", 1 / 2, False, bitsflip_string),
    Task("bitsrep", "3 random bits, three times", 1 / 3, False, bitsrep_string),
)
