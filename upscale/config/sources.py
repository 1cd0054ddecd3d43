"""The entries of `data.sources`, one class a kind, and what makes one impossible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field

from upscale.settings import AUTO, Auto, Count, CountOrZero, NotNegative, Section, Share, integral

if TYPE_CHECKING:
    from upscale.config import ModelConfig

Range = Annotated[list[NotNegative], Field(min_length=2, max_length=2)]
Bound = Annotated[int, BeforeValidator(integral), Field(ge=1, le=1 << 30)]
Problems = Iterator[tuple[str, str]]


class SourceSection(Section):
    weight: NotNegative = 1.0
    """Relative frequency among the sources; 0: never."""

    def resolved(self, model: ModelConfig) -> SourceSection:
        """The same entry with every `auto` replaced."""
        return self

    def problems(self, model: ModelConfig | None) -> Problems:
        """Impossible values as (key, message); `model` is None where that section is itself in error."""
        yield from ()


class AutoregressiveSource(SourceSection):
    seed_tokens: Count = 8
    """Tokens copied from the buffer at the start of each row."""
    temperature: NotNegative = 1e-4
    """Sampling temperature; 0: the most likely token."""
    multiplier: Range = [0.0, 1.1]
    """Range of the factor on a program's weights, its biases and head aside; drawn anew for each program."""

    def problems(self, model: ModelConfig | None) -> Problems:
        if self.multiplier[0] > self.multiplier[1]:
            yield "multiplier", f"{self.multiplier} is not [low, high]"
        if 0 < self.temperature < 1e-6:
            yield "temperature", f"{self.temperature} is neither 0 (the most likely token) nor at least 1e-6"
        if model and self.seed_tokens > model.context:
            yield "seed_tokens", f"{self.seed_tokens} exceeds model.context = {model.context}"


class RecurrentSource(AutoregressiveSource):
    kind: Literal["lstm", "gru"]
    hidden: Count | Auto = AUTO
    """Hidden units; auto: model.width / 10. The embedding has half of it."""

    def resolved(self, model: ModelConfig) -> RecurrentSource:
        return self.model_copy(update={"hidden": round(model.width / 10)}) if self.hidden == AUTO else self

    def problems(self, model: ModelConfig | None) -> Problems:
        yield from super().problems(model)
        if self.hidden != AUTO and self.hidden < 2:
            yield "hidden", f"{self.hidden} is too small: its embedding has half of it"
        if model and self.hidden == AUTO and round(model.width / 10) < 2:
            yield "hidden", f"auto is model.width / 10 = {model.width / 10}: give at least 2"


class TransformerSource(AutoregressiveSource):
    kind: Literal["transformer"]
    hidden: Count | Auto = AUTO
    """Width, a multiple of `heads`; auto: the multiple nearest to model.width / 10."""
    layers: Count = 1
    """Layers, as many as the LSTM's by default."""
    heads: Count = 4
    """Attention heads."""

    def resolved(self, model: ModelConfig) -> TransformerSource:
        hidden = max(1, round(model.width / 10 / self.heads)) * self.heads
        return self.model_copy(update={"hidden": hidden}) if self.hidden == AUTO else self

    def problems(self, model: ModelConfig | None) -> Problems:
        yield from super().problems(model)
        if self.hidden != AUTO and (self.hidden < 2 or self.hidden % self.heads):
            yield "hidden", f"{self.hidden} must be at least 2 and a multiple of heads = {self.heads}"
        if self.hidden == AUTO and self.heads == 1 and model and model.width < 15:
            yield "hidden", f"auto is model.width / 10 = {model.width / 10}: give at least 2"


class UTMSource(SourceSection):
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
    """uniform: every instruction equally likely; markov: an order-2 chain, for far richer programs."""
    padding: Literal["repeat", "zero"] = "repeat"
    """What follows a program's output in its row: the output again and again, or token 0."""
    permute: bool = True
    """Rename the tokens of each row at random; false: a token is a cell's value."""

    def problems(self, model: ModelConfig | None) -> Problems:
        if model and self.alphabet > model.vocabulary:
            yield "alphabet", f"{self.alphabet} is {_exceeds(model)}"
        if self.program_length > self.steps:
            yield "program_length", f"{self.program_length} exceeds steps = {self.steps}: the rest is never read"


class NCASource(SourceSection):
    kind: Literal["nca"]
    colours: Annotated[int, Field(ge=2)] = 4
    """Values of a cell; colours ^ (cells of a patch) tokens must fit into model.vocabulary."""
    grid: Annotated[int, Field(ge=3)] = 12
    """Rows and columns of cells, a multiple of the patch's."""
    patch: Annotated[list[Count], Field(min_length=2, max_length=2)] = [2, 2]
    """Rows and columns of the cells that make one token."""
    burn_in: CountOrZero = 10
    """States dropped at the start of a trajectory."""
    stride: Count = 1
    """Steps from one frame to the next."""
    temperature: NotNegative = 1e-4
    """Temperature of a cell's draw; 0: the most likely colour."""
    identity_bias: Annotated[float, Field(ge=-100, le=100)] = 0.0
    """Added to the logit of the colour that a cell has already."""
    wrap_channels: bool = False
    """Wrap the convolution around the colours as well, as the published code does."""
    delimiters: bool = False
    """Lead and end each frame with a token of its own, as the paper."""
    band: Range = [0.75, 2.0]
    """Complexity of the rules used: above and below these shares of what gzip makes of random tokens; [0, 2]: all."""
    permute: bool = True
    """Rename the tokens of each row at random; false: a fixed code for patches, as the paper."""

    def problems(self, model: ModelConfig | None) -> Problems:
        high, wide = self.patch
        needed = self.colours ** (high * wide) + 2 * self.delimiters
        frame = self.grid**2 // (high * wide) + 2 * self.delimiters
        if model and needed > model.vocabulary:
            yield "colours", f"{self.colours} in patches of {self.patch} need {needed} tokens: {_exceeds(model)}"
        if self.grid % high or self.grid % wide:
            yield "grid", f"{self.grid} is not a multiple of the patch's sides {self.patch}"
        elif model and frame > model.context + 1:
            yield "grid", f"{self.grid} makes frames of {frame} tokens, but a row holds {model.context + 1}"
        if 0 < self.temperature < 1e-6:
            yield "temperature", f"{self.temperature} is neither 0 (the most likely colour) nor at least 1e-6"
        if self.band[0] >= self.band[1]:
            yield "band", f"{self.band} is not [low, high]"


class AutomatonSource(SourceSection):
    kind: Literal["automaton"]
    permute: bool = False
    """Rename the symbols of each row at random; false: the low ids, as the published code."""


class PointwiseSource(SourceSection):
    kind: Literal["pointwise"]
    variant: Literal["paper", "code"] = "paper"
    """paper: a Dirichlet(1/2) distribution a row; code: what the published code does, 0 to 19 tokens a row."""


class DyckSource(SourceSection):
    kind: Literal["dyck"]
    brackets: Count = 64
    """Types of brackets; each takes two tokens."""
    open_probability: Share = 0.5
    """How often a bracket opens where one may also close."""
    depth: Count = 64
    """Brackets that may be open at once."""
    permute: bool = False
    """Rename the tokens of each row at random."""

    def problems(self, model: ModelConfig | None) -> Problems:
        if model and 2 * self.brackets > model.vocabulary:
            yield "brackets", f"{self.brackets} need {2 * self.brackets} tokens: {_exceeds(model)}"


class UniformSource(SourceSection):
    kind: Literal["uniform"]


def _exceeds(model: ModelConfig) -> str:
    return f"more than model.vocabulary = {model.vocabulary}"


Source = Annotated[
    RecurrentSource
    | TransformerSource
    | UTMSource
    | NCASource
    | AutomatonSource
    | PointwiseSource
    | DyckSource
    | UniformSource,
    Field(discriminator="kind"),
]
LSTM = RecurrentSource(kind="lstm")


def problems_of_sources(sources: Sequence[SourceSection], model: ModelConfig | None) -> list[tuple[str, str]]:
    """Impossible combinations as (key, message)."""
    found = []
    if not sum(source.weight for source in sources):
        found.append(("data.sources", "all weights are 0; give one of them a positive weight"))
    for index, source in enumerate(sources):
        found += [(f"data.sources[{index}].{key}", message) for key, message in source.problems(model)]
    return found
