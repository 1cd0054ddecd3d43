"""The lists source: algorithmic tasks on lists, whose answers are the targets (arXiv 2601.21725, 2505.22308).

The definitions are those of the published code (zlshinnick/procedural-pretraining). With v = `values` and n = `items`,
values are drawn uniformly from 1 to v - 1, with replacement; 0 is never one; v is the separator S, v + 1 the pad Q. A
sample is a list x, perhaps a query, S, and the answer y:

| task | sample | answer |
|---|---|---|
| identity | x S y | x |
| reverse | x S y | x backwards |
| sort | x S y | x ascending, duplicates kept |
| set | x S y | the distinct values of x in order of first occurrence |
| union | a S b S y | n / 2 values each in a and b; the distinct ones of a then b in order of first occurrence |
| delete | x S q S y | x without the first q; q is drawn like a value and often not in x |

An answer is padded with Q to n tokens, so that all samples of a task are equally long: 2n + 1 tokens, union 2n + 2,
delete 2n + 3. A row holds as many whole samples as fit, one after the other, and the first part of one more. Targets
are the tokens of answers without pads, so nothing trains where to stop (`loss: answer`, as published), or every token
(`loss: all`). In the published code a row is one sample: that is a context of a sample less one token.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field

from upscale.randomness.streams import Purpose, Stream
from upscale.settings import Count
from upscale.sources.base import Problems, Source, SourceSettings, exceeds
from upscale.sources.tokens import check_vocabulary, read_only, token_dtype

if TYPE_CHECKING:
    from upscale.config import ModelConfig

TASKS = ("identity", "reverse", "sort", "set", "union", "delete")


class ListsSettings(SourceSettings):
    measured = {task: {"task": task} for task in TASKS}

    kind: Literal["lists"]
    task: Literal[TASKS]  # type: ignore[valid-type]
    """What the answer is: x itself, backwards, sorted, its distinct values, those of two lists, x without a value."""
    items: Count = 64
    """Values of a sample; even for union."""
    values: Annotated[int, Field(ge=2)] = 100
    """Values are 1 to this less one; it is the separator's id, the next one the pad's."""
    loss: Literal["answer", "all"] = "answer"
    """answer: only the answers' tokens are targets, without pads; all: every token."""

    @property
    def masked(self) -> bool:
        return self.loss == "answer"

    def problems(self, model: ModelConfig | None) -> Problems:
        if self.task == "union" and self.items % 2:
            yield "items", f"{self.items} cannot be halved for union: give an even number"
        if self.task == "delete" and self.items == 1 and self.masked:
            yield "items", "1 with task: delete leaves lists without an answer, and so without a target: give 2 or more"
        if model and self.values + 2 > model.vocabulary:
            yield "values", f"{self.values} need {self.values + 2} tokens: {exceeds(model)}"
        if model and sample_length(self.task, self.items) > model.context + 1:
            yield (
                "items",
                f"{self.items} make samples of {sample_length(self.task, self.items)} tokens, more than a row's "
                f"{model.context + 1}: lower it, or raise model.context",
            )

    def optimum(self, model: ModelConfig, first_target: int) -> float | None:
        """Answers follow from what is before them."""
        return 0.0 if self.masked else super().optimum(model, first_target)

    def bits(self, length: int, vocabulary: int) -> list[float]:
        free = math.log2(self.values - 1)
        drawn = [free * drawn for drawn in drawn_places(self.task, self.items)]
        return [drawn[place % len(drawn)] for place in range(length)]

    def build(self, vocabulary: int) -> ListsSource:
        return ListsSource(vocabulary=vocabulary, **self.arguments())


def sample_length(task: str, items: int) -> int:
    """Tokens of a sample."""
    return 2 * items + {"union": 2, "delete": 3}.get(task, 1)


def drawn_places(task: str, items: int) -> list[bool]:
    """Which tokens of a sample are drawn, rather than separators, answers and pads."""
    x = [True] * items
    if task == "union":
        x.insert(items // 2, False)
    query = [False, True] if task == "delete" else []
    return [*x, *query, *[False] * (items + 1)]


class ListsSource(Source):
    """Samples of one task; reads neither conditions nor seeds."""

    def __init__(self, *, vocabulary: int, task: str, items: int = 64, values: int = 100, loss: str = "answer") -> None:
        check_vocabulary(vocabulary)
        if task not in TASKS:
            raise ValueError(f"task is {task!r}; allowed: {', '.join(TASKS)}")
        if loss not in ("answer", "all"):
            raise ValueError(f"loss is {loss!r}; allowed: answer, all")
        if not 2 <= values <= vocabulary - 2:
            raise ValueError(f"values is {values}; allowed: 2 to the vocabulary less two ({vocabulary - 2})")
        if items < 1 or (task == "union" and items % 2):
            raise ValueError(f"items is {items}; allowed: 1 or more, even for union")
        self.vocabulary, self.task, self.items, self.values, self.loss = vocabulary, task, items, values, loss

    def write(self, stream: Stream, conditions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(L, rows, length) of the shape of `conditions`."""
        _, rows, length = conditions.shape
        count = -(-length // sample_length(self.task, self.items))
        x = 1 + stream.integers(Purpose.LIST_VALUE, self.values - 1, rows, count, self.items)
        separator = torch.full_like(x[..., :1], self.values)
        given = [x, separator]
        if self.task == "union":
            first, second = x.split(self.items // 2, dim=-1)
            given = [first, separator, second, separator]
        elif self.task == "delete":
            query = 1 + stream.integers(Purpose.LIST_QUERY, self.values - 1, rows, count, 1)
            given = [x, separator, query, separator]
        answer = self._answer(x, query if self.task == "delete" else None)
        pieces = [*given, answer]
        tokens = torch.cat(pieces, dim=-1).flatten(2)[..., :length]
        if self.loss == "all":
            return tokens.to(token_dtype(self.vocabulary))
        read = torch.cat([*(torch.ones_like(each, dtype=torch.bool) for each in given), answer > self.values], dim=-1)
        return read_only(tokens, read.flatten(2)[..., :length])

    def _answer(self, x: torch.Tensor, query: torch.Tensor | None) -> torch.Tensor:
        """(..., items) int64, padded."""
        if self.task == "identity":
            return x
        if self.task == "reverse":
            return x.flip(-1)
        if self.task == "sort":
            return x.sort(dim=-1).values
        place = torch.arange(self.items, device=x.device)
        # What is left out goes behind everything else, as pads.
        if self.task == "delete":
            out = (x == query) & ((x == query).cumsum(dim=-1) == 1)
        else:
            first = torch.full((*x.shape[:-1], self.values), self.items, device=x.device)
            first.scatter_reduce_(-1, x, place.expand_as(x), "amin")
            out = first.gather(-1, x) < place
        order = (place + self.items * out).sort(dim=-1).values % self.items
        return x.gather(-1, order).where(place < (~out).sum(dim=-1, keepdim=True), self.values + 1)
