"""Recurrent sources: a random LSTM or GRU writes rows, each token conditioned on a row of the buffer (Bloem 2025).

One layer of `hidden` units reads concat(embedding(x[t-1]), embedding(z[t-1])), both from one table of hidden // 2
columns, and predicts x[t]; z is the condition. Weights are PyTorch's default initialisation; the input and hidden
weights, not the biases, are then multiplied by one u ~ U(multiplier) a program.

Written for speed under two rules. First, the input has only 256 values a side, so its projection is two tables (x and
z), and a step is two row gathers, one recurrent product, the gates, the head and one draw. Second, a lane's rows must
be the same bits whichever lanes share the call, since near-greedy sampling of a chaotic map amplifies one bit to other
text. Therefore products are batched over lanes, of filled-up sizes (`_FILL`); everything between is rounded exactly
once (add, subtract, multiply) or goes through a sigmoid that sees whole vectors only (`_Block`); and on a GPU,
where libraries choose kernels by shape, the shape is fixed by filling up the lanes (`lanes_per_call`).
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from upscale.randomness import Purpose, Stream

# Sizes are filled up to a multiple of this, what PyTorch's elementwise CPU kernels take at a time (two registers
# of at most 16 floats). Products need it too: the library divides one among threads, and a rest of one row or a few
# columns is summed in another order. Measured with MKL in float32 and 1 to 64 threads: products of 5, 7, 9 and 17 rows,
# and of 17, 20, 33 and 100 columns, differ with the threads or with the number of lanes; multiples of 16 do not. Rows
# have their own multiple since 16 is what a lane of the shipped configs has.
_FILL = 32
_ROWS_FILL = 16

# The least number of elements that an elementwise CPU kernel gives a thread.
_ELEMENTS_PER_THREAD = 1 << 15

# Rows that a GPU computes together: its time for a step hardly depends on their number up to about here.
_ROWS_PER_GPU_CALL = 1024


@dataclass(frozen=True)
class Program:
    """The parameters of one call, one program a lane, in the shapes of torch.nn after the lane dimension."""

    embedding: torch.Tensor
    """(L, vocabulary, hidden // 2)"""
    weight_input: torch.Tensor
    """(L, gates * hidden, 2 * (hidden // 2)), multiplied"""
    weight_hidden: torch.Tensor
    """(L, gates * hidden, hidden), multiplied"""
    bias_input: torch.Tensor
    """(L, gates * hidden)"""
    bias_hidden: torch.Tensor
    """(L, gates * hidden)"""
    head_weight: torch.Tensor
    """(L, vocabulary, hidden)"""
    head_bias: torch.Tensor
    """(L, vocabulary)"""


class RecurrentSource:
    """What the LSTM and the GRU share: parameters, tables, the walk over time, sampling.

    A subclass names its gates and gives `_cell`. `lanes_per_call` fixes the number of lanes computed together, missing
    ones filled up with copies whose rows are dropped; None means all at once on a CPU and, on a GPU, as many as make
    1024 rows, which is 64 lanes of 16 rows: a number that depends on the rows of a lane alone. `dtype` float64 is for
    comparisons with an oracle, where no two tokens tie; its products, unlike float32's, depend on the CPU's threads.
    """

    gate_factors: tuple[int, ...]
    """One for a gate through a sigmoid, two for one through tanh(x) = 2 sigmoid(2x) - 1, in PyTorch's order."""

    def __init__(
        self,
        *,
        vocabulary: int,
        hidden: int,
        seed_tokens: int = 8,
        temperature: float = 1e-4,
        multiplier: Sequence[float] = (0.0, 1.1),
        dtype: torch.dtype = torch.float32,
        lanes_per_call: int | None = None,
    ) -> None:
        if not 1 <= vocabulary <= 256:
            raise ValueError(f"vocabulary is {vocabulary}; allowed: 1 to 256 (rows are uint8)")
        if hidden < 2:
            raise ValueError(f"hidden is {hidden}; allowed: 2 or more (the embedding has half of it)")
        if seed_tokens < 1:
            raise ValueError(f"seed_tokens is {seed_tokens}; allowed: 1 or more")
        if not (temperature == 0 or 1e-6 <= temperature < float("inf")):
            raise ValueError(f"temperature is {temperature}; allowed: 0 (always the likeliest token) or at least 1e-6")
        if len(multiplier) != 2 or not 0 <= multiplier[0] <= multiplier[1]:
            raise ValueError(f"multiplier is {list(multiplier)}; allowed: two numbers [low, high], 0 <= low <= high")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype is {dtype}; allowed: torch.float32 or torch.float64 (lower ones change the rows)")
        if lanes_per_call is not None and lanes_per_call < 1:
            raise ValueError(f"lanes_per_call is {lanes_per_call}; allowed: None or 1 or more")
        self.vocabulary = vocabulary
        self.hidden = hidden
        self.seed_tokens = seed_tokens
        self.temperature = temperature
        self.multiplier = (float(multiplier[0]), float(multiplier[1]))
        self.dtype = dtype
        self.lanes_per_call = lanes_per_call

    def write(self, stream: Stream, conditions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(L, rows, length) uint8 rows that begin with their seeds; see `upscale.sources.Source.write`."""
        lanes, rows, length = conditions.shape
        if length < self.seed_tokens or tuple(seeds.shape) != (lanes, rows, self.seed_tokens) or len(stream) != lanes:
            raise ValueError(
                f"{len(stream)} lanes, conditions {tuple(conditions.shape)}, seeds {tuple(seeds.shape)}; allowed: "
                f"(lanes, rows, length) and (lanes, rows, {self.seed_tokens}), length at least {self.seed_tokens}"
            )
        on_gpu = max(1, _ROWS_PER_GPU_CALL // (rows + -rows % _ROWS_FILL))
        per_call = self.lanes_per_call or (lanes if stream.device.type == "cpu" else on_gpu)
        written = torch.empty(lanes, rows, length, dtype=torch.uint8, device=stream.device)
        with torch.no_grad(), _exact_products(stream.device):
            for start in range(0, lanes, per_call):
                places = torch.arange(start, start + per_call, device=stream.device).clamp_(max=lanes - 1)
                part = self._write(stream.at(places), conditions[places], seeds[places])
                written[start : start + per_call] = part[: lanes - start]
        return written

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

    def _write(self, stream: Stream, conditions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        lanes, rows, length = conditions.shape
        free_tokens = length - self.seed_tokens
        filling = -rows % _ROWS_FILL
        # Time comes first and rows last from here on, filled up with rows that nobody reads.
        conditions, seeds = (
            torch.nn.functional.pad(tokens.permute(2, 0, 1), (0, filling)).long() for tokens in (conditions, seeds)
        )
        heights = None
        if self.temperature > 0:
            # In (0, 1]: so the first entry of the cumulative sum that reaches height * total always exists and always
            # has a positive probability, however the sum was rounded.
            heights = 1 - stream.uniform(Purpose.TOKEN, rows, free_tokens).permute(2, 0, 1)
            heights = torch.nn.functional.pad(heights, (0, filling), value=1.0)
            heights = heights.reshape(free_tokens, -1, 1).to(self.dtype)
        step = _Step(self, self.program(stream), rows + filling)
        lane_entry = torch.arange(lanes, device=stream.device)[:, None] * _filled_up(self.vocabulary)
        condition_entries = (conditions + lane_entry).flatten(1)
        lane_entries = lane_entry.expand(lanes, rows + filling).flatten()
        entries = torch.empty_like(lane_entries)
        tokens = torch.empty(length, len(entries), 1, dtype=torch.int64, device=stream.device)
        tokens[: self.seed_tokens, :, 0] = seeds.flatten(1)
        # Views are made here, all at once: a step is short enough for an index in Python to count.
        read, drawn = tokens[..., 0].unbind(), tokens.unbind()
        conditions_read = condition_entries.unbind()
        heights_met = [None] * length if heights is None else [None] * self.seed_tokens + list(heights.unbind())
        for time in range(length - 1):
            torch.add(read[time], lane_entries, out=entries)
            step.advance(entries, conditions_read[time])
            if time + 1 >= self.seed_tokens:
                step.sample(heights_met[time + 1], out=drawn[time + 1])
        return tokens.view(length, lanes, -1)[..., :rows].permute(1, 2, 0).to(torch.uint8)

    @staticmethod
    def _cell(step: "_Step") -> None:
        """Takes `step.hidden` (and `step.memory`) one token further."""
        raise NotImplementedError


class LSTMSource(RecurrentSource):
    """A random LSTM a lane and round (Bloem 2025)."""

    gate_factors = (1, 1, 2, 1)

    @staticmethod
    def _cell(step: "_Step") -> None:
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
    def _cell(step: "_Step") -> None:
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
        shape = (lanes, rows, _filled_up(width))
        elements = lanes * rows * shape[-1]
        flat = like.new_zeros(elements + -elements % (2 * _FILL))
        self.whole = flat[:elements].view(shape)
        self.view = self.whole[..., :width]
        self.parts = self.view.chunk(parts, dim=-1)
        self._pieces = flat.split(2 * _ELEMENTS_PER_THREAD) if like.device.type == "cpu" else (flat,)

    def sigmoid(self, out: "_Block") -> None:
        for given, taken in zip(self._pieces, out._pieces, strict=True):
            torch.sigmoid(given, out=taken)


class _Step:
    """The arrays of one call, all made once, and one step of time over them.

    `gates` holds what x and z give on entry of `_cell`, which adds the recurrent product. `state` is (hidden / 2, 1):
    the one turns the last row of each matrix into its biases, and the half spares a doubling (see LSTMSource). Factors
    of two and four are exact, and go into the tables and matrices.
    """

    def __init__(self, source: RecurrentSource, program: Program, rows: int) -> None:
        lanes, vocabulary, half = program.embedding.shape
        width, gate_rows = source.hidden, program.weight_hidden.shape[1]
        factors = program.embedding.new_tensor(source.gate_factors).repeat_interleave(width)

        embedding = _filled(program.embedding, dim=1)
        x_weight, z_weight = (program.weight_input * factors[:, None]).split(half, dim=-1)
        x_table = torch.bmm(embedding, _filled(x_weight.mT, dim=2))
        x_table += _filled(program.bias_input * factors, dim=1)[:, None]
        z_table = torch.bmm(embedding, _filled(z_weight.mT, dim=2))
        self.x_table, self.z_table = x_table.flatten(0, 1), z_table.flatten(0, 1)

        weights, biases = program.weight_hidden * (2 * factors[:, None]), program.bias_hidden * factors
        self.matrix = _filled(torch.cat([weights.mT, biases[:, None]], dim=1), dim=2)
        self.head = _filled(torch.cat([program.head_weight.mT * 2, program.head_bias[:, None]], dim=1), dim=2)
        self.head[:, width, vocabulary:] = -torch.inf
        if source.temperature > 0:
            self.head /= source.temperature

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
        self._logits = self.state.new_empty(lanes, rows, self.head.shape[2])
        self._row_logits = self._logits.flatten(0, 1)
        self._cumulative = torch.empty_like(self._row_logits)
        self._total = self._cumulative[:, -1:]
        self._thresholds = torch.empty_like(self._total, memory_format=torch.contiguous_format)
        self._cell = source._cell

    def advance(self, x_entries: torch.Tensor, z_entries: torch.Tensor) -> None:
        """Reads one token a row: `(L * rows,)` entries of the tables, lane * _filled_up(vocabulary) + token."""
        torch.index_select(self.x_table, 0, x_entries, out=self._inputs)
        torch.index_select(self.z_table, 0, z_entries, out=self._gathered)
        self._inputs.add_(self._gathered)
        self._cell(self)

    def sample(self, heights: torch.Tensor | None, out: torch.Tensor) -> None:
        """Draws one token a row, (L * rows, 1) int64, where `heights` (L * rows, 1) meet the distribution's sum.

        Without heights, the likeliest token.
        """
        torch.bmm(self.state, self.head, out=self._logits)
        if heights is None:
            torch.argmax(self._row_logits, dim=-1, keepdim=True, out=out)
            return
        torch.softmax(self._row_logits, dim=-1, out=self._cumulative)
        torch.cumsum(self._cumulative, dim=-1, out=self._cumulative)
        torch.mul(heights, self._total, out=self._thresholds)
        torch.searchsorted(self._cumulative, self._thresholds, out=out)


def _filled_up(size: int) -> int:
    return -(-size // _FILL) * _FILL


def _filled(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """The tensor with zeros behind it along one dimension, up to a multiple of `_FILL`."""
    filling = [0, 0] * tensor.ndim
    filling[2 * (tensor.ndim - 1 - dim) + 1] = -tensor.shape[dim] % _FILL
    return torch.nn.functional.pad(tensor, filling)


@contextlib.contextmanager
def _exact_products(device: torch.device) -> Iterator[None]:
    """Full fp32 matrix products, whatever the training around has chosen for its own (TF32, bf16, autocast).

    The setting is the process's: no other thread may multiply matrices meanwhile and expect TF32.
    """
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    chosen = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, chosen, strict=True):
            backend.fp32_precision = precision
