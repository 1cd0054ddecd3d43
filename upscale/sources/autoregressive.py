"""What sources share that write a row one token after another, each drawn from the softmax of a head's logits.

Written for speed under one rule: a lane's rows must be the same bits whichever lanes share the call, since near-greedy
sampling of a chaotic map amplifies one bit to other text. Therefore products are batched over lanes, of filled-up sizes
(`FILL`), and on a GPU, where libraries choose kernels by shape, the shape is fixed by filling up the lanes
(`lanes_per_call`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from upscale.randomness.streams import Purpose, Stream
from upscale.settings import Count, NotNegative
from upscale.sources.base import Problems, Range, Source, SourceSettings
from upscale.sources.tokens import check_vocabulary, token_dtype

if TYPE_CHECKING:
    from upscale.config import ModelConfig

# Sizes are filled up to a multiple of this, what PyTorch's elementwise CPU kernels take at a time (two registers
# of at most 16 floats). Products need it too: the library divides one among threads, and a rest of one row or a few
# columns is summed in another order. Measured with MKL in float32 and 1 to 64 threads: products of 5, 7, 9 and 17 rows,
# and of 17, 20, 33 and 100 columns, differ with the threads or with the number of lanes; multiples of 16 do not. Rows
# have their own multiple since 16 is what a lane of the shipped configs has.
FILL = 32
ROWS_FILL = 16

# Rows that a GPU computes together: its time for a step hardly depends on their number up to about here.
_ROWS_PER_GPU_CALL = 1024


class Walk(Protocol):
    """One call's way through time."""

    def advance(self, x_entries: torch.Tensor, z_entries: torch.Tensor) -> None:
        """Reads one token a row and one of its condition: (L * rows,) entries, lane * filled_up(vocabulary) + token."""
        ...

    def sample(self, heights: torch.Tensor | None, out: torch.Tensor) -> None:
        """Draws one token a row, (L * rows, 1) int64; see `Head.sample`."""
        ...


class AutoregressiveSettings(SourceSettings):
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

    def launches_many(self, model: ModelConfig) -> bool:
        """PyTorch's operations, one token after another."""
        return True


class AutoregressiveSource(Source):
    """Checks, filling-up, the walk over time. A subclass gives `_walk`.

    `lanes_per_call` fixes the number of lanes computed together, missing ones filled up with copies whose rows are
    dropped; None means all at once on a CPU and, on a GPU, as many as make 1024 rows, which is 64 lanes of 16 rows: a
    number that depends on the rows of a lane alone. `dtype` float64 is for comparisons with an oracle, where no two
    tokens tie; its products, unlike float32's, depend on the CPU's threads.
    """

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
        check_vocabulary(vocabulary)
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
        """(L, rows, length) rows that begin with their seeds; see `upscale.sources.Source.write`."""
        lanes, rows, length = conditions.shape
        if length < self.seed_tokens or tuple(seeds.shape) != (lanes, rows, self.seed_tokens) or len(stream) != lanes:
            raise ValueError(
                f"{len(stream)} lanes, conditions {tuple(conditions.shape)}, seeds {tuple(seeds.shape)}; allowed: "
                f"(lanes, rows, length) and (lanes, rows, {self.seed_tokens}), length at least {self.seed_tokens}"
            )
        per_call = self.lanes_per_call or self._lanes_at_once(stream.device, lanes, rows)
        written = torch.empty(lanes, rows, length, dtype=token_dtype(self.vocabulary), device=stream.device)
        with torch.no_grad(), exact_products(stream.device):
            for start in range(0, lanes, per_call):
                places = torch.arange(start, start + per_call, device=stream.device).clamp_(max=lanes - 1)
                part = self._write(stream.at(places), conditions[places], seeds[places])
                written[start : start + per_call] = part[: lanes - start]
        return written

    def method(self, device: torch.device) -> str:
        """How rows are written on a device; each way has roundings of its own, which sampling amplifies."""
        return f"eager on {device.type}"

    def _lanes_at_once(self, device: torch.device, lanes: int, rows: int) -> int:
        return lanes if device.type == "cpu" else max(1, _ROWS_PER_GPU_CALL // (rows + -rows % ROWS_FILL))

    def _write(self, stream: Stream, conditions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        lanes, rows, length = conditions.shape
        free_tokens = length - self.seed_tokens
        filling = -rows % ROWS_FILL
        # Time comes first and rows last from here on, filled up with rows that nobody reads.
        conditions, seeds = (
            torch.nn.functional.pad(tokens.permute(2, 0, 1), (0, filling)).long() for tokens in (conditions, seeds)
        )
        heights = self._cumulative_weights(stream, rows, free_tokens)
        if heights is not None:
            heights = heights.permute(2, 0, 1)
            heights = torch.nn.functional.pad(heights, (0, filling), value=1.0)
            heights = heights.reshape(free_tokens, -1, 1).to(self.dtype)
        walk = self._walk(stream, rows + filling, length)
        lane_entry = torch.arange(lanes, device=stream.device)[:, None] * filled_up(self.vocabulary)
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
            walk.advance(entries, conditions_read[time])
            if time + 1 >= self.seed_tokens:
                walk.sample(heights_met[time + 1], out=drawn[time + 1])
        return tokens.view(length, lanes, -1)[..., :rows].permute(1, 2, 0).to(token_dtype(self.vocabulary))

    def _cumulative_weights(self, stream: Stream, rows: int, free_tokens: int) -> torch.Tensor | None:
        """Where each draw meets its distribution's sum, as a share of it: (L, rows, free_tokens) fp32, None if greedy.

        In (0, 1]: so the first entry of the cumulative sum that reaches height * total always exists and always has a
        positive probability, however the sum was rounded.
        """
        return 1 - stream.uniform(Purpose.TOKEN, rows, free_tokens) if self.temperature > 0 else None

    def _walk(self, stream: Stream, rows: int, length: int) -> Walk:
        """The start of a call over the stream's lanes, `rows` rows each (filled up), `length` tokens."""
        raise NotImplementedError


class Head:
    """The last layer and the draw of a token, over arrays made once.

    `weights` (L, width, vocabulary) and `biases` (L, vocabulary) act on `state` (L, rows, width + 1), whose last column
    is one.
    """

    def __init__(self, weights: torch.Tensor, biases: torch.Tensor, state: torch.Tensor, temperature: float) -> None:
        width, vocabulary = weights.shape[1:]
        self.state = state
        self.matrix = filled(torch.cat([weights, biases[:, None]], dim=1), dim=2)
        self.matrix[:, width, vocabulary:] = -torch.inf
        if temperature > 0:
            self.matrix /= temperature
        self._logits = state.new_empty(*state.shape[:2], self.matrix.shape[2])
        self._row_logits = self._logits.flatten(0, 1)
        self._cumulative = torch.empty_like(self._row_logits)
        self._total = self._cumulative[:, -1:]
        self._thresholds = torch.empty_like(self._total, memory_format=torch.contiguous_format)

    def sample(self, heights: torch.Tensor | None, out: torch.Tensor) -> None:
        """Draws one token a row, (L * rows, 1) int64, where `heights` (L * rows, 1) meet the distribution's sum.

        Without heights, the likeliest token.
        """
        torch.bmm(self.state, self.matrix, out=self._logits)
        if heights is None:
            torch.argmax(self._row_logits, dim=-1, keepdim=True, out=out)
            return
        torch.softmax(self._row_logits, dim=-1, out=self._cumulative)
        torch.cumsum(self._cumulative, dim=-1, out=self._cumulative)
        torch.mul(heights, self._total, out=self._thresholds)
        torch.searchsorted(self._cumulative, self._thresholds, out=out)


def filled_up(size: int) -> int:
    return -(-size // FILL) * FILL


def filled(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """The tensor with zeros behind it along one dimension, up to a multiple of `FILL`."""
    filling = [0, 0] * tensor.ndim
    filling[2 * (tensor.ndim - 1 - dim) + 1] = -tensor.shape[dim] % FILL
    return torch.nn.functional.pad(tensor, filling)


@contextlib.contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Full fp32 matrix products, whatever the training around has chosen for its own (TF32, bf16, autocast).

    The setting is the process's: no other thread may multiply matrices meanwhile and expect TF32. It is left alone
    where it is exact, as torch has it by default: a change in a thread that draws ahead makes torch.compile, which
    guards on it, trace the training's blocks anew, or fail.
    """
    backends = [
        backend
        for backend in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
        if backend.fp32_precision not in ("none", "ieee")
    ]
    chosen = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, chosen, strict=True):
            backend.fp32_precision = precision
