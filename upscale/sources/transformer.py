"""The transformer source: a random transformer writes rows, each token conditioned on a row of the buffer (Bloem 2025).

The paper makes it "in the same way as the LSTMs" and says no more; this is that, with PyTorch's own layer. At t - 1 the
input is X[x[t-1]] + Z[z[t-1]] + P[t-1], tables of N(0, 1) for the token, the condition and the position. It passes
`layers` causal layers of torch.nn.TransformerEncoderLayer in its default form (post-norm, ReLU, 4 * hidden units in
between, attention scaled by 1/sqrt(head size)) and its default initialisation, whose weights, not the biases, are
multiplied by one u ~ U(multiplier) a program; a linear head, not multiplied, gives the logits of x[t]. The published
code instead passes buffer rows once, in parallel (its sequential form ignores the condition); that is no program that
reads its own output, and is not made here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from upscale.randomness.streams import Purpose, Stream
from upscale.settings import AUTO, Auto, Count
from upscale.sources.autoregressive import FILL, AutoregressiveSettings, AutoregressiveSource, Head, filled
from upscale.sources.base import Problems

if TYPE_CHECKING:
    from upscale.config import ModelConfig


class TransformerSettings(AutoregressiveSettings):
    kind: Literal["transformer"]
    hidden: Count | Auto = AUTO
    """Width, a multiple of `heads`; auto: the multiple nearest to model.width / 10."""
    layers: Count = 1
    """Layers, as many as the LSTM's by default."""
    heads: Count = 4
    """Attention heads."""

    def resolved(self, model: ModelConfig) -> TransformerSettings:
        hidden = max(1, round(model.width / 10 / self.heads)) * self.heads
        return self.model_copy(update={"hidden": hidden}) if self.hidden == AUTO else self

    def problems(self, model: ModelConfig | None) -> Problems:
        yield from super().problems(model)
        if self.hidden != AUTO and (self.hidden < 2 or self.hidden % self.heads):
            yield "hidden", f"{self.hidden} must be at least 2 and a multiple of heads = {self.heads}"
        if self.hidden == AUTO and self.heads == 1 and model and model.width < 15:
            yield "hidden", f"auto is model.width / 10 = {model.width / 10}: give at least 2"

    def build(self, vocabulary: int) -> TransformerSource:
        return TransformerSource(vocabulary=vocabulary, **self.arguments())


class TransformerSource(AutoregressiveSource):
    """A random transformer a lane and round."""

    def __init__(
        self,
        *,
        vocabulary: int,
        hidden: int,
        layers: int = 1,
        heads: int = 4,
        seed_tokens: int = 8,
        temperature: float = 1e-4,
        multiplier: Sequence[float] = (0.0, 1.1),
        dtype: torch.dtype = torch.float32,
        lanes_per_call: int | None = None,
    ) -> None:
        super().__init__(
            vocabulary=vocabulary,
            hidden=hidden,
            seed_tokens=seed_tokens,
            temperature=temperature,
            multiplier=multiplier,
            dtype=dtype,
            lanes_per_call=lanes_per_call,
        )
        if layers < 1:
            raise ValueError(f"layers is {layers}; allowed: 1 or more")
        if heads < 1 or hidden % heads:
            raise ValueError(f"heads is {heads}; allowed: a divisor of hidden ({hidden})")
        self.layers, self.heads = layers, heads

    def _walk(self, stream: Stream, rows: int, length: int) -> _Walk:
        return _Walk(self, stream, rows, length)


class _Layer:
    """One layer's weights, (L, columns in, columns out) with the biases as their last row, and its keys and values."""

    def __init__(self, source: TransformerSource, weights: list[torch.Tensor], rows: int, length: int) -> None:
        self.project_in, self.project_out, self.feedforward_in, self.feedforward_out = weights
        head_size = source.hidden // source.heads
        count, filled_length = len(weights[0]) * rows * source.heads, length + -length % FILL
        self.keys = weights[0].new_zeros(count, head_size, filled_length)
        self.values = weights[0].new_zeros(count, filled_length, head_size)


class _Walk:
    """The arrays of one call, and one step of time over them.

    Keys are (L * rows * heads, head size, length) and values (L * rows * heads, length, head size), read up to the
    step's place filled up to a multiple of `FILL`, so that a product's size depends on the time alone. `state` ends in
    a column of ones for the head's biases.
    """

    def __init__(self, source: TransformerSource, stream: Stream, rows: int, length: int) -> None:
        lanes, hidden = len(stream), source.hidden
        self.lanes, self.rows, self.hidden, self.heads, self.time = lanes, rows, hidden, source.heads, 0
        self.scale = (hidden // source.heads) ** -0.5

        def normal(purpose: Purpose, entries: int) -> torch.Tensor:
            return stream.normal(purpose, entries, hidden).to(source.dtype)

        def between(purpose: Purpose, bound: float, *shape: int) -> torch.Tensor:
            return stream.uniform(purpose, *shape).to(source.dtype).mul_(2).sub_(1).mul_(bound)

        self.x_table = filled(normal(Purpose.EMBEDDING, source.vocabulary), dim=1).flatten(0, 1)
        self.z_table = filled(normal(Purpose.CONDITION_EMBEDDING, source.vocabulary), dim=1).flatten(0, 1)
        self.positions = normal(Purpose.POSITION_EMBEDDING, length)

        low, high = source.multiplier
        multiplier = stream.uniform(Purpose.MULTIPLIER, 1, 1, 1).to(source.dtype).mul_(high - low).add_(low)
        count, wide, bound = source.layers, 4 * hidden, hidden**-0.5
        project_in = between(Purpose.ATTENTION_IN, (1.5 / hidden) ** 0.5, count, 3 * hidden, hidden)
        project_out = between(Purpose.ATTENTION_OUT, bound, count, hidden, hidden)
        feedforward_in = between(Purpose.FEEDFORWARD_IN, bound, count, wide, hidden)
        feedforward_out = between(Purpose.FEEDFORWARD_OUT, wide**-0.5, count, hidden, wide)
        biases = {
            2: between(Purpose.FEEDFORWARD_IN_BIAS, bound, count, wide),
            3: between(Purpose.FEEDFORWARD_OUT_BIAS, wide**-0.5, count, hidden),
        }
        self.layers = []
        for index in range(count):
            weights = [project_in, project_out, feedforward_in, feedforward_out]
            weights = [(each[:, index] * multiplier[:, 0]).mT for each in weights]
            for place, bias in biases.items():
                weights[place] = torch.cat([weights[place], bias[:, index, None]], dim=1)
            self.layers.append(_Layer(source, [filled(each, dim=2).contiguous() for each in weights], rows, length))

        self.state = normal(Purpose.EMBEDDING, 1).new_ones(lanes, rows, hidden + 1)
        self.between = self.state.new_ones(lanes, rows, wide + 1)
        head_weights = between(Purpose.HEAD_WEIGHT, bound, source.vocabulary, hidden).mT
        head_biases = between(Purpose.HEAD_BIAS, bound, source.vocabulary)
        self.sample = Head(head_weights, head_biases, self.state, source.temperature).sample

    def advance(self, x_entries: torch.Tensor, z_entries: torch.Tensor) -> None:
        """Reads one token a row: `(L * rows,)` entries of the tables, lane * filled_up(vocabulary) + token."""
        inputs = self.x_table.index_select(0, x_entries).add_(self.z_table.index_select(0, z_entries))
        inputs = inputs.view(self.lanes, self.rows, self.hidden).add_(self.positions[:, self.time, None])
        for layer in self.layers:
            inputs = self._normalized(inputs + self._attention(layer, inputs))
            self.state[..., :-1] = inputs
            self.between[..., :-1] = torch.bmm(self.state, layer.feedforward_in)[..., : 4 * self.hidden].relu_()
            fed = torch.bmm(self.between, layer.feedforward_out)[..., : self.hidden]
            inputs = self._normalized(inputs + fed)
        self.state[..., :-1] = inputs
        self.time += 1

    def _attention(self, layer: _Layer, inputs: torch.Tensor) -> torch.Tensor:
        """(L, rows, hidden), from all positions up to this one."""
        projected = torch.bmm(inputs, layer.project_in)[..., : 3 * self.hidden]
        queries, keys, values = projected.view(self.lanes * self.rows, 3, self.heads, -1).unbind(1)
        layer.keys[:, :, self.time], layer.values[:, self.time] = keys.flatten(0, 1), values.flatten(0, 1)
        seen = self.time + 1
        read = slice(seen + -seen % FILL)
        scores = torch.bmm(queries.reshape(-1, 1, queries.shape[-1]), layer.keys[..., read])[:, 0].mul_(self.scale)
        scores[:, seen:] = -torch.inf
        mixed = torch.bmm(torch.softmax(scores, dim=-1)[:, None], layer.values[:, read])
        mixed = mixed.view(self.lanes, self.rows, self.hidden)
        return torch.bmm(mixed, layer.project_out)[..., : self.hidden]

    def _normalized(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(inputs, (self.hidden,))
