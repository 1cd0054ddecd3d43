"""The rewriting source: the three tasks of LIME, strings with variables that stand for strings (arXiv 2101.06223).

Each example has its own alphabet, drawn without replacement from `symbols`: 24 variables, 24 letters, 20 operators. It
has u = 3 to 5 variables; a pattern of 2u draws from them and 5 to 19 operators, shuffled; for each variable a string
of 2 to 8 letters or operators; and the result, the pattern with every variable replaced by its string. All numbers and
draws are uniform. Of pattern, map and result two are given and one is the answer: `deduct` asks for the result,
`abduct` for the map, `induct` for the pattern; `mixed` draws one of the three for each example.

The published examples are for an encoder and a decoder. As rows they are laid out by us: the task's id (0, 1, 2), the
first part given, 4, the second one, 5, the answer, 6. Parts are in the order pattern, map, result, but `induct` gives
the result before the map. The map has for each variable, in the order in which they were drawn (the published code's is
accidental): the variable, 3, its string, 4. Symbols are ids from 7 on. Targets are the answer and the 6 that ends it.
Examples follow each other, and the row's end cuts the last one. A result follows from what is given; a map or a
pattern may not, so that only `deduct` has a known optimum, 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field

from upscale.randomness.streams import Purpose, Stream
from upscale.sources.base import Problems, Source, SourceSettings, exceeds
from upscale.sources.tokens import check_vocabulary, read_only

if TYPE_CHECKING:
    from upscale.config import ModelConfig

TASKS = ("deduct", "abduct", "induct", "mixed")
MIXED = TASKS.index("mixed")
VARIABLES, LETTERS, OPERATORS = 24, 24, 20
ALPHABET = VARIABLES + LETTERS + OPERATORS
IS, NEXT, ANSWER, END, FIRST_SYMBOL = 3, 4, 5, 6, 7
MOST_VARIABLES, MOST_OPERATORS, LONGEST = 5, 19, 8
PATTERN = 2 * MOST_VARIABLES + MOST_OPERATORS
SHORTEST_EXAMPLE = 4 + (2 * 3 + 5) + 3 * (2 + 3) + (2 * 3 * 2 + 5)
LONGEST_EXAMPLE = 4 + PATTERN + MOST_VARIABLES * (LONGEST + 3) + 2 * MOST_VARIABLES * LONGEST + MOST_OPERATORS


class RewritingSettings(SourceSettings):
    kind: Literal["rewriting"]
    task: Literal[TASKS] = "mixed"  # type: ignore[valid-type]
    """What is asked for: deduct: the result; abduct: what variables stand for; induct: the pattern; mixed: any."""
    symbols: Annotated[int, Field(ge=ALPHABET)] = 249
    """Symbols that alphabets are drawn from, 1000 in the published code; with seven ids before them."""

    @property
    def masked(self) -> bool:
        return True

    def problems(self, model: ModelConfig | None) -> Problems:
        if model and self.symbols + FIRST_SYMBOL > model.vocabulary:
            yield "symbols", f"{self.symbols} need {self.symbols + FIRST_SYMBOL} tokens: {exceeds(model)}"
        if model and model.context + 1 < LONGEST_EXAMPLE:
            yield "kind", f"its examples have up to {LONGEST_EXAMPLE} tokens: raise model.context, now {model.context}"

    def optimum(self, model: ModelConfig, first_target: int) -> float | None:
        return 0.0 if self.task == "deduct" else None

    def build(self, vocabulary: int) -> RewritingSource:
        return RewritingSource(vocabulary=vocabulary, **self.arguments())


class RewritingSource(Source):
    """Examples of rewriting; reads neither conditions nor seeds."""

    def __init__(self, *, vocabulary: int, task: str = "mixed", symbols: int = 249) -> None:
        check_vocabulary(vocabulary)
        if task not in TASKS:
            raise ValueError(f"task is {task!r}; allowed: {', '.join(TASKS)}")
        if not ALPHABET <= symbols <= vocabulary - FIRST_SYMBOL:
            raise ValueError(f"symbols is {symbols}; allowed: {ALPHABET} to {vocabulary - FIRST_SYMBOL}")
        self.vocabulary, self.task, self.symbols = vocabulary, task, symbols

    def write(self, stream: Stream, conditions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(L, rows, length) of the shape of `conditions`."""
        lanes, rows, length = conditions.shape
        count = -(-length // SHORTEST_EXAMPLE)
        tokens, answers = self._examples(stream, rows * count)
        # What an example lacks is -1: the rest moves together.
        tokens, answers = (each.view(lanes * rows, -1) for each in (tokens, answers))
        place = (tokens >= 0).cumsum(dim=1) - 1
        place = place.where((tokens >= 0) & (place < length), length)
        packed = [each.new_zeros(len(each), length + 1).scatter_(1, place, each) for each in (tokens, answers)]
        tokens, answers = (each[:, :length].view(lanes, rows, length) for each in packed)
        return read_only(tokens, ~answers)

    def _examples(self, stream: Stream, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(L, count, slots) int64 tokens, -1 for none, and which of them are answers."""

        def integers(purpose: Purpose, high: int, *shape: int) -> torch.Tensor:
            return stream.integers(purpose, high, count, *shape).flatten(0, 1)

        keys = stream.bits(Purpose.REWRITE_ALPHABET, count * self.symbols).reshape(-1, self.symbols) << 15
        keys = keys | torch.arange(self.symbols, device=stream.device)
        alphabet = FIRST_SYMBOL + (keys.topk(ALPHABET, dim=1, largest=False).values & 0x7FFF)
        lengths = stream.bits(Purpose.REWRITE_LENGTHS, 2 * count).reshape(-1, 2)
        variables, operators = 3 + (lengths[:, 0] * 3 >> 32), 5 + (lengths[:, 1] * 15 >> 32)

        slot = torch.arange(PATTERN, device=stream.device)
        words = stream.bits(Purpose.REWRITE_PATTERN, count * PATTERN).reshape(-1, PATTERN)
        # Variables are numbered from 0, operators from MOST_VARIABLES on; both stand in front before they are shuffled.
        number = torch.where(
            slot < 2 * variables[:, None], words * variables[:, None] >> 32, MOST_VARIABLES + (words * OPERATORS >> 32)
        )
        size = 2 * variables + operators
        order = stream.bits(Purpose.REWRITE_ORDER, count * PATTERN).reshape(-1, PATTERN)
        order = order + ((slot >= size[:, None]).long() << 33)
        number = number.gather(1, ((order << 6) | slot).sort(dim=1).values & 63)
        there = slot < size[:, None]
        is_variable = number < MOST_VARIABLES
        operator = alphabet.gather(1, (VARIABLES + LETTERS + number - MOST_VARIABLES).clamp(max=ALPHABET - 1))
        pattern = torch.where(is_variable, alphabet.gather(1, number.clamp(max=MOST_VARIABLES)), operator)
        pattern = pattern.where(there, -1)

        sizes = 2 + integers(Purpose.REWRITE_VALUE_LENGTH, 7, MOST_VARIABLES)
        values = integers(Purpose.REWRITE_VALUE, LETTERS + OPERATORS, MOST_VARIABLES * LONGEST)
        values = alphabet.gather(1, VARIABLES + values).view(-1, MOST_VARIABLES, LONGEST)
        values = values.where(torch.arange(LONGEST, device=stream.device) < sizes[..., None], -1)
        used = torch.arange(MOST_VARIABLES, device=stream.device) < variables[:, None]
        name = alphabet[:, :MOST_VARIABLES, None]
        entry = torch.cat([name, torch.full_like(name, IS), values, torch.full_like(name, NEXT)], dim=2)
        mapping = entry.where(used[..., None], -1).flatten(1)

        standing = values.gather(1, number.clamp(max=MOST_VARIABLES - 1)[..., None].expand(-1, -1, LONGEST))
        alone = torch.full_like(standing, -1)
        alone[..., 0] = pattern
        result = torch.where((is_variable & there)[..., None], standing, alone).flatten(1)
        return self._laid_out(integers(Purpose.REWRITE_TASK, MIXED), pattern, mapping, result, len(stream))

    def _laid_out(
        self, drawn: torch.Tensor, pattern: torch.Tensor, mapping: torch.Tensor, result: torch.Tensor, lanes: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        task = drawn if self.task == "mixed" else torch.full_like(drawn, TASKS.index(self.task))
        width = result.shape[1]
        parts = torch.stack(
            [torch.nn.functional.pad(p, (0, width - p.shape[1]), value=-1) for p in (pattern, mapping, result)]
        )
        orders = torch.tensor([[0, 1, 2], [0, 2, 1], [2, 1, 0]], device=drawn.device)[task]
        first, second, answer = (
            parts[orders[:, place], torch.arange(len(task), device=drawn.device)] for place in range(3)
        )

        def mark(token: int) -> torch.Tensor:
            return torch.full_like(task, token)[:, None]

        pieces = [task[:, None], first, mark(NEXT), second, mark(ANSWER), answer, mark(END)]
        tokens = torch.cat(pieces, dim=1)
        answers = torch.zeros_like(tokens, dtype=torch.bool)
        answers[:, -width - 1 :] = True
        return tokens.view(lanes, len(task) // lanes, -1), answers.view(lanes, len(task) // lanes, -1)
