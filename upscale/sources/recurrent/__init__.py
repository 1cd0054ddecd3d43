"""Recurrent sources: a random LSTM or GRU writes rows, each token conditioned on a row of the buffer (Bloem 2025).

One layer of `hidden` units reads concat(embedding(x[t-1]), embedding(z[t-1])), both from one table of hidden // 2
columns, and predicts x[t]; z is the condition. Weights are PyTorch's default initialisation; the input and hidden
weights, not the biases, are then multiplied by one u ~ U(multiplier) a program.

Written for speed under two rules. First, the input has only 256 values a side, so its projection is two tables (x and
z), and a step is two row gathers, one recurrent product, the gates, the head and one draw. Second, a lane's rows must
be the same bits whichever lanes share the call (`upscale.sources.autoregressive`).

There are three ways to write them (`RecurrentSource.method`), chosen by the machine alone: one Triton kernel on a GPU
(fused.py), compiled C on a CPU (native.py), and the PyTorch operations of this file where there is no Triton or no C
compiler. In the last, everything between the products is rounded exactly once (add, subtract, multiply) or goes through
a sigmoid that sees whole vectors only (`_Block`). Each way rounds otherwise, and near-greedy sampling amplifies that to
other text; checkpoints say which it was, and a resumed run tells a change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch

from upscale.machine.compiler import triton_found
from upscale.randomness.streams import Purpose, Stream
from upscale.settings import AUTO, Auto, Count
from upscale.sources.autoregressive import FILL, AutoregressiveSettings, AutoregressiveSource, Head, filled, filled_up
from upscale.sources.base import Problems
from upscale.sources.recurrent import native
from upscale.sources.recurrent.program import Program
from upscale.sources.tokens import token_dtype

if TYPE_CHECKING:
    from upscale.config import ModelConfig

# The fused kernel holds the logits of a tile of rows in registers, all at once.
MOST_FUSED_TOKENS = 256

# The least number of elements that an elementwise CPU kernel gives a thread.
_ELEMENTS_PER_THREAD = 1 << 15


class RecurrentSettings(AutoregressiveSettings):
    kind: Literal["lstm", "gru"]
    hidden: Count | Auto = AUTO
    """Hidden units; auto: model.width / 10. The embedding has half of it."""

    def resolved(self, model: ModelConfig) -> RecurrentSettings:
        return self.model_copy(update={"hidden": round(model.width / 10)}) if self.hidden == AUTO else self

    def problems(self, model: ModelConfig | None) -> Problems:
        yield from super().problems(model)
        if self.hidden != AUTO and self.hidden < 2:
            yield "hidden", f"{self.hidden} is too small: its embedding has half of it"
        if model and self.hidden == AUTO and round(model.width / 10) < 2:
            yield "hidden", f"auto is model.width / 10 = {model.width / 10}: give at least 2"

    def launches_many(self, model: ModelConfig) -> bool:
        """One kernel writes whole rows, where there is one."""
        return self.build(model.vocabulary).method(torch.device("cuda")) != "fused"

    def build(self, vocabulary: int) -> RecurrentSource:
        return {"lstm": LSTMSource, "gru": GRUSource}[self.kind](vocabulary=vocabulary, **self.arguments())


class RecurrentSource(AutoregressiveSource):
    """What the LSTM and the GRU share: parameters and tables. A subclass names its gates and gives `_cell`."""

    gate_factors: tuple[int, ...]
    """One for a gate through a sigmoid, two for one through tanh(x) = 2 sigmoid(2x) - 1, in PyTorch's order."""

    def __init__(self, *, eager: bool = False, **arguments: Any) -> None:
        """With `eager`, by PyTorch's operations one step after another, whatever else the machine has."""
        super().__init__(**arguments)
        self.eager = eager

    def program(self, stream: Stream) -> Program:
        """The stream's random programs."""
        gate_rows, half = len(self.gate_factors) * self.hidden, self.hidden // 2
        bound = self.hidden**-0.5

        def drawn(purpose: Purpose, *shape: int) -> torch.Tensor:
            return stream.uniform(purpose, *shape).to(self.dtype).mul_(2).sub_(1).mul_(bound)

        low, high = self.multiplier
        multiplier = stream.uniform(Purpose.MULTIPLIER, 1, 1).to(self.dtype).mul_(high - low).add_(low)
        return Program(
            embedding=stream.normal(Purpose.EMBEDDING, self.vocabulary, half).to(self.dtype),
            weight_input=drawn(Purpose.WEIGHT_INPUT, gate_rows, 2 * half).mul_(multiplier),
            weight_hidden=drawn(Purpose.WEIGHT_HIDDEN, gate_rows, self.hidden).mul_(multiplier),
            bias_input=drawn(Purpose.BIAS_INPUT, gate_rows),
            bias_hidden=drawn(Purpose.BIAS_HIDDEN, gate_rows),
            head_weight=drawn(Purpose.HEAD_WEIGHT, self.vocabulary, self.hidden),
            head_bias=drawn(Purpose.HEAD_BIAS, self.vocabulary),
        )

    def method(self, device: torch.device) -> str:
        """`fused` needs a GPU, Triton and at most 256 tokens; `native` a CPU and a C compiler; else it is eager."""
        if device.type == "cuda" and not self.eager and triton_found() and self.vocabulary <= MOST_FUSED_TOKENS:
            return "fused"
        if device.type == "cpu" and not self.eager and native.available():
            return "native"
        return super().method(device)

    def _lanes_at_once(self, device: torch.device, lanes: int, rows: int) -> int:
        return lanes if self.method(device) == "fused" else super()._lanes_at_once(device, lanes, rows)

    def _write(self, stream: Stream, conditions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        method = self.method(stream.device)
        if method not in ("fused", "native"):
            return super()._write(stream, conditions, seeds)
        if method == "fused":
            from upscale.sources.recurrent.fused import write
        else:
            from upscale.sources.recurrent.native import write

        heights = self._cumulative_weights(stream, conditions.shape[1], conditions.shape[2] - self.seed_tokens)
        tokens = write(self.program(stream), conditions, seeds, heights, self.temperature)
        return tokens.to(token_dtype(self.vocabulary))

    def _walk(self, stream: Stream, rows: int, length: int) -> _Step:
        return _Step(self, self.program(stream), rows)

    @staticmethod
    def _cell(step: _Step) -> None:
        """Takes `step.hidden` (and `step.memory`) one token further."""
        raise NotImplementedError


class LSTMSource(RecurrentSource):
    """A random LSTM a lane and round (Bloem 2025)."""

    gate_factors = (1, 1, 2, 1)

    @staticmethod
    def _cell(step: _Step) -> None:
        # c' = f c + i g and h' = o tanh(c'), held as `memory` = 2 c and `hidden` = h / 2: with s = sigmoid(2 x) and
        # tanh(x) = 2 (s - 1/2), 2 c' = f (2 c) + 4 i (s - 1/2) and h' / 2 = o (sigmoid(2 c') - 1/2).
        step.gates.whole.baddbmm_(step.state, step.matrix)
        step.gates.sigmoid(out=step.gates)
        enter, forget, candidate, leave = step.gates.parts
        step.memory.view.mul_(forget).add_(candidate.sub_(0.5).mul_(enter), alpha=4)
        step.memory.sigmoid(out=step.squashed)
        torch.mul(step.squashed.view.sub_(0.5), leave, out=step.hidden)


class GRUSource(RecurrentSource):
    """A random GRU a lane and round, otherwise as the LSTM; the paper has none."""

    gate_factors = (1, 1, 2)

    @staticmethod
    def _cell(step: _Step) -> None:
        # n = tanh(input_n + r recurrent_n) and h' = n + z (h - n), held as `hidden` = h / 2 and `squashed` = n / 2. The
        # two parts of n meet only after r, so the input's is set aside until then.
        torch.bmm(step.state, step.matrix, out=step.recurrent)
        step.memory.view.copy_(step.gates.parts[2])
        step.gates.whole.add_(step.recurrent)
        step.gates.sigmoid(out=step.gates)
        reset, update, _ = step.gates.parts
        step.memory.view.add_(step.recurrent_candidate.mul_(reset))
        step.memory.sigmoid(out=step.squashed)
        candidate = step.squashed.view.sub_(0.5)
        step.hidden.sub_(candidate).mul_(update).add_(candidate)


class _Block:
    """A zeroed (L, rows, width) array, filled up to whole vectors so that no element's place matters to its sigmoid.

    PyTorch's elementwise CPU kernels finish what fills no vector with a scalar form, which may round otherwise. They
    divide an array among one thread per `_ELEMENTS_PER_THREAD`, at any element; so they get pieces for two at most,
    whose halves are whole vectors. `whole` includes the filling of each row, `view` does not.
    """

    def __init__(self, lanes: int, rows: int, width: int, parts: int, like: torch.Tensor) -> None:
        shape = (lanes, rows, filled_up(width))
        elements = lanes * rows * shape[-1]
        flat = like.new_zeros(elements + -elements % (2 * FILL))
        self.whole = flat[:elements].view(shape)
        self.view = self.whole[..., :width]
        self.parts = self.view.chunk(parts, dim=-1)
        self._pieces = flat.split(2 * _ELEMENTS_PER_THREAD) if like.device.type == "cpu" else (flat,)

    def sigmoid(self, out: _Block) -> None:
        for given, taken in zip(self._pieces, out._pieces, strict=True):
            torch.sigmoid(given, out=taken)


class _Step:
    """The arrays of one call, all made once, and one step of time over them.

    `gates` holds what x and z give on entry of `_cell`, which adds the recurrent product. `state` is (hidden / 2, 1):
    the one turns the last row of each matrix into its biases, and the half spares a doubling (see LSTMSource). Factors
    of two and four are exact, and go into the tables and matrices.
    """

    def __init__(self, source: RecurrentSource, program: Program, rows: int) -> None:
        lanes, _, half = program.embedding.shape
        width, gate_rows = source.hidden, program.weight_hidden.shape[1]
        factors = program.embedding.new_tensor(source.gate_factors).repeat_interleave(width)

        embedding = filled(program.embedding, dim=1)
        x_weight, z_weight = (program.weight_input * factors[:, None]).split(half, dim=-1)
        x_table = torch.bmm(embedding, filled(x_weight.mT, dim=2))
        x_table += filled(program.bias_input * factors, dim=1)[:, None]
        z_table = torch.bmm(embedding, filled(z_weight.mT, dim=2))
        self.x_table, self.z_table = x_table.flatten(0, 1), z_table.flatten(0, 1)

        weights, biases = program.weight_hidden * (2 * factors[:, None]), program.bias_hidden * factors
        self.matrix = filled(torch.cat([weights.mT, biases[:, None]], dim=1), dim=2)

        def block(columns: int, parts: int = 1) -> _Block:
            return _Block(lanes, rows, columns, parts, like=program.embedding)

        gates = len(source.gate_factors)
        self.state = block(width + 1).view
        self.state[..., width] = 1
        self.hidden = self.state[..., :width]
        self.memory, self.squashed = block(width), block(width)
        self.gates = block(gate_rows, gates)
        self.recurrent = torch.empty_like(self.gates.whole)
        self.recurrent_candidate = self.recurrent[..., gate_rows - width : gate_rows]
        self._inputs = self.gates.whole.flatten(0, 1)
        self._gathered = torch.empty_like(self._inputs)
        head = Head(program.head_weight.mT * 2, program.head_bias, self.state, source.temperature)
        self.sample = head.sample
        self._cell = source._cell

    def advance(self, x_entries: torch.Tensor, z_entries: torch.Tensor) -> None:
        """Reads one token a row: `(L * rows,)` entries of the tables, lane * filled_up(vocabulary) + token."""
        torch.index_select(self.x_table, 0, x_entries, out=self._inputs)
        torch.index_select(self.z_table, 0, z_entries, out=self._gathered)
        self._inputs.add_(self._gathered)
        self._cell(self)
