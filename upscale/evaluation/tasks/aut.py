"""aut: runs of one fixed automaton."""

from __future__ import annotations

import numpy as np

from upscale.evaluation.tasks.generated import GeneratedTask

# The fixed automaton of the public code: for each state the edges (next state, byte written), taken uniformly.
AUTOMATON = (
    ((0, 122), (1, 122), (2, 248), (3, 248), (4, 224)),
    ((1, 224), (3, 224)),
    ((3, 248),),
    ((4, 248),),
    ((0, 248), (2, 122), (3, 224)),
)
SYMBOLS = 512


def aut_string(random: np.random.Generator) -> bytes:
    """512 symbols of the fixed five-state automaton, started in state 0."""
    symbols, state = bytearray(), 0
    for _ in range(SYMBOLS):
        edges = AUTOMATON[state]
        state, symbol = edges[random.integers(len(edges))]
        symbols.append(symbol)
    return bytes(symbols)


AUT = GeneratedTask(
    name="aut",
    definition="512 symbols of a fixed five-state automaton",
    optimal_bits_per_character=0.916,  # no closed form: exact filtering over its hidden states; +- 0.001
    delimited=False,
    string=aut_string,
)
