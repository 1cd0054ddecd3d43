"""The UTM source: random programs of BrainPhoque, a Turing machine whose every program is valid (arXiv 2401.14953).

Memory is a ring of `memory` cells, all 0, with values modulo `alphabet`; a pointer starts at cell 0. Instructions:
`+` and `-` change the cell, `>` and `<` move the pointer, `.` prints the cell, `[` and `]` are brackets.

A program is written while it runs: when execution reaches its end, the next symbol is appended and executed at once. A
`[` appended on a zero cell is kept as `{`: its body is not there yet, what follows it is its continuation. (A sampled
`{` on another cell is kept as `[`.) Executing them:

- `[` new: goes onto the stack of open brackets, and the body follows. Again, on a zero cell: jumps to its continuation,
  which is the end of the program the first time; on another cell: goes on into the body.
- `{` new: goes on. Again, on a zero cell: goes on; on another cell: jumps to its body, which is the end of the program
  the first time, and then goes onto the stack.
- `]` new: takes the last bracket off the stack, for ever its own, and jumps to it; with an empty stack it does nothing.

Every executed instruction is one step. A run ends at `steps` steps, when the row is full, or when instruction
`program_length` + 1 is needed. Symbols are drawn uniformly from the seven, or by an order-2 Markov chain over the
executed program (`sampler: markov`). The published sampler's file of counts is not used: the weights in
transitions.json are this project's own, counted over programs that print much (tests/benchmarks/utm_transitions.py).
The rest of a row repeats what was printed, or is 0 (`padding`); a program that prints nothing counts as one that prints
a single 0. The published ids are the values; `permute` renames those of each row at random.

The machine is a C file, run on the CPU by as many threads as torch has: a program is one long chain of single steps,
for which thousands of small kernels on a GPU are no match.
"""

from __future__ import annotations

import ctypes
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy
import torch
from pydantic import BeforeValidator, Field

from upscale.machine import compiler
from upscale.randomness.streams import Purpose, Stream
from upscale.settings import integral
from upscale.sources.base import Problems, Source, SourceSettings, exceeds
from upscale.sources.tokens import check_vocabulary, renamed, token_dtype

if TYPE_CHECKING:
    from upscale.config import ModelConfig

SYMBOLS = "+-><[].{"
SAMPLERS = ("uniform", "markov")
PADDINGS = ("repeat", "zero")
STATUSES = ("HALTED", "TIMEOUT", "OUTPUT_LIMIT")
MOST = 1 << 30
Bound = Annotated[int, BeforeValidator(integral), Field(ge=1, le=MOST)]


class _Settings(ctypes.Structure):
    _fields_ = [
        ("memory_size", ctypes.c_int32),
        ("alphabet", ctypes.c_int32),
        ("maximal_steps", ctypes.c_int64),
        ("program_length", ctypes.c_int64),
        ("output_limit", ctypes.c_int64),
        ("key", ctypes.c_uint32 * 2),
        ("purpose", ctypes.c_uint32),
        ("round", ctypes.c_uint32),
        ("lane", ctypes.c_uint32),
        ("transitions", ctypes.c_void_p),
    ]


class UTMSettings(SourceSettings):
    measured = {
        "": {},
        **{
            f"{factor}x": {"memory": 10 * factor, "steps": 100 * factor, "program_length": 100 * factor}
            for factor in (10, 50, 250)
        },
        "50x, markov": {"memory": 500, "steps": 5000, "program_length": 5000, "sampler": "markov"},
    }

    kind: Literal["utm"]
    alphabet: Annotated[int, Field(ge=2, le=256)] = 128
    """Values of a cell, at most model.vocabulary."""
    memory: Bound = 10
    """Cells of the ring of memory."""
    steps: Bound = 100
    """Instructions a program may execute."""
    program_length: Bound = 100
    """Instructions a program may hold."""
    sampler: Literal["uniform", "markov"] = "uniform"
    """uniform: every instruction equally likely; markov: an order-2 chain of own counts, for far richer programs."""
    padding: Literal["repeat", "zero"] = "repeat"
    """What follows a program's output in its row: the output again and again, or token 0."""
    permute: bool = True
    """Rename the tokens of each row at random; false: a token is a cell's value."""

    def problems(self, model: ModelConfig | None) -> Problems:
        if model and self.alphabet > model.vocabulary:
            yield "alphabet", f"{self.alphabet} is {exceeds(model)}"
        if self.program_length > self.steps:
            yield "program_length", f"{self.program_length} exceeds steps = {self.steps}: the rest is never read"

    def build(self, vocabulary: int) -> UTMSource:
        return UTMSource(vocabulary=vocabulary, **self.arguments())


class UTMSource(Source):
    """A random program a row; reads neither conditions nor seeds.

    Raises UserError when the machine has no C compiler.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        alphabet: int = 128,
        memory: int = 10,
        steps: int = 100,
        program_length: int = 100,
        sampler: str = "uniform",
        padding: str = "repeat",
        permute: bool = True,
    ) -> None:
        check_vocabulary(vocabulary)
        if not 2 <= alphabet <= min(256, vocabulary):
            raise ValueError(f"alphabet is {alphabet}; allowed: 2 to {min(256, vocabulary)} (at most the vocabulary)")
        for name, value in (("memory", memory), ("steps", steps), ("program_length", program_length)):
            if not 1 <= value <= MOST:
                raise ValueError(f"{name} is {value}; allowed: 1 to {MOST}")
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler is {sampler!r}; allowed: {', '.join(SAMPLERS)}")
        if padding not in PADDINGS:
            raise ValueError(f"padding is {padding!r}; allowed: {', '.join(PADDINGS)}")
        self.vocabulary, self.alphabet, self.memory, self.steps = vocabulary, alphabet, memory, steps
        self.program_length, self.padding, self.permute = program_length, padding, permute
        self._transitions = transitions() if sampler == "markov" else None
        self._library = compiler.library(Path(__file__).with_name("utm.c"), "data.sources: the utm source")

    def write(self, stream: Stream, conditions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(L, rows, length) of the shape of `conditions`. Runs on the CPU: waits for a GPU to hand over the keys."""
        tokens, _ = self.outputs(stream, *conditions.shape[1:])
        tokens = torch.from_numpy(tokens).to(stream.device)
        if self.permute:
            tokens = renamed(tokens.long(), stream, Purpose.PERMUTATION, self.vocabulary)
        return tokens.to(token_dtype(self.vocabulary))

    def outputs(self, stream: Stream, rows: int, length: int) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Rows (L, rows, length) uint8 before any renaming, and how many tokens were printed, (L, rows) int64."""
        tokens = numpy.empty((len(stream), rows, length), numpy.uint8)
        printed = numpy.empty((len(stream), rows), numpy.int64)
        lanes, rounds = stream.lanes.tolist(), stream.rounds.tolist()

        def write(place: int) -> None:
            settings = self._settings(self.program_length, length, stream.seed, lanes[place], rounds[place])
            fits = self._library.upscale_utm_write(
                ctypes.byref(settings),
                ctypes.c_int64(rows),
                ctypes.c_int(self.padding == "repeat"),
                ctypes.c_void_p(tokens[place].ctypes.data),
                ctypes.c_void_p(printed[place].ctypes.data),
            )
            if not fits:
                raise MemoryError(f"no memory for programs of {self.program_length} symbols and {self.memory} cells")

        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            list(threads.map(write, range(len(stream))))
        return tokens, printed

    def run(self, program: str, output_limit: int) -> tuple[str, list[int], int, str]:
        """One given program: its status, what it printed, the steps it took, and the program as executed."""
        settings = self._settings(len(program), output_limit)
        tokens, executed = (ctypes.c_uint8 * output_limit)(), (ctypes.c_uint8 * max(1, len(program)))()
        lengths, symbols = (ctypes.c_int64 * 3)(), bytes(map(SYMBOLS.index, program))
        status = self._library.upscale_utm_run(ctypes.byref(settings), symbols, tokens, executed, lengths)
        printed, steps, used = lengths
        return STATUSES[status], list(tokens[:printed]), steps, "".join(SYMBOLS[symbol] for symbol in executed[:used])

    def _settings(
        self, program_length: int, output_limit: int, seed: int = 0, lane: int = 0, number: int = 0
    ) -> _Settings:
        return _Settings(
            memory_size=self.memory,
            alphabet=self.alphabet,
            maximal_steps=self.steps,
            program_length=program_length,
            output_limit=output_limit,
            key=(seed & 0xFFFFFFFF, seed >> 32),
            purpose=int(Purpose.UTM_SYMBOL),
            round=number,
            lane=lane,
            transitions=None if self._transitions is None else self._transitions.ctypes.data,
        )


def transitions(counts: dict[str, list[int]] | None = None) -> numpy.ndarray:
    """Cumulative weights of the next symbol, (73, 8) uint32: no context, then each symbol, then each two.

    `counts` gives, for contexts of 0 to 2 symbols, how often each symbol of `SYMBOLS` followed (default: the shipped
    ones); every one counts half a time more.
    """
    if counts is None:
        counts = json.loads(Path(__file__).with_name("transitions.json").read_text())["counts"]
    contexts = ["", *SYMBOLS, *(first + second for first in SYMBOLS for second in SYMBOLS)]
    return numpy.cumsum([[2 * number + 1 for number in counts[context]] for context in contexts], axis=1, dtype="u4")
