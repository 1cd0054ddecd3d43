"""The NCA source: the states that random neural cellular automata pass through (arXiv 2603.10055), as patches.

A row shows one automaton. Its state is a torus of `grid` x `grid` cells with `colours` values. Its rule is a random
network: a 3 x 3 convolution of the one-hot state to 4 channels, a 1 x 1 convolution to 16 (nothing between the two), a
ReLU, a 1 x 1 convolution to a logit for each colour; biases are zero, weights are normal with variance 1 / fan-in, cut
at two standard deviations. All cells step at once: the next colour is drawn from the softmax of (logits + identity_bias
where the cell's own colour is) / temperature. The published code also wraps the convolution around the channels, so
that the first and the last colour have two kernels each: `wrap_channels`. A trajectory starts from cells drawn from one
random distribution, the softmax of N(0, 1) logits; its first `burn_in` states are dropped, and every `stride`-th of the
others is a frame, until the row is full.

A patch of cells is a token: the sum of cell k times colours^k, k counting row by row; patches also go row by row. With
`delimiters`, a frame is led by token colours^cells and followed by the next id. `permute` renames the tokens of each
row at random, so that no id has a fixed meaning; the paper's code is fixed.

Rules are filtered by complexity. A candidate is simulated once more from another start for 10 frames after the burn-in;
its score is how far gzip (level 9) shrinks the tokens, as 4-byte integers, divided by the score of uniformly random
tokens of the same number. The published "above 50 %" of bytes is 0.747 of that ceiling with 10 colours; the share
itself means nothing for other colours. Candidates outside `band` are drawn again, row by row.

Rows must not depend on the size of a call, and near-greedy automata amplify a rounding: so weights are rounded to
multiples of 2^-14, all sums are then exact in float64, and only the exponential of a draw can differ, by its last bit.
Which rules pass depends on zlib's version, since another compressor gives other sizes.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Literal

import numpy
import torch
from pydantic import Field

from upscale.errors import UserError
from upscale.randomness.streams import Purpose, Stream
from upscale.settings import Count, CountOrZero, NotNegative
from upscale.sources.base import Problems, Range, Source, SourceSettings, exceeds
from upscale.sources.tokens import check_vocabulary, drawn, renamed, token_dtype

if TYPE_CHECKING:
    from upscale.config import ModelConfig

PERCEPTION, HIDDEN = 4, 16
FILTER_FRAMES = 10
ALL_RULES = (0.0, 2.0)
# Products of three weights and the sums over 9 cells, 4 and 16 channels stay below 2^52 in units of 2^-42.
_UNIT = 2.0**-14
_CUT = 2.0
_CUT_DEVIATION = 0.8796256610342398  # of a standard normal variable cut at +-2

_SHOWN = (Purpose.NCA_COLOUR, Purpose.NCA_START, Purpose.NCA_NOISE)
_FILTERED = (Purpose.NCA_FILTER_COLOUR, Purpose.NCA_FILTER_START, Purpose.NCA_FILTER_NOISE)

_TRIED_RULES = 300
_LEAST_ACCEPTED = 0.02
# At the least share accepted, one row of 10^18 finds no rule in so many attempts.
_MOST_ATTEMPTS = 2048
_MOST_AT_ONCE = 16
# Rows and attempts have keys of their own: a row's number lies above its lane's, an attempt's above the round's (so a
# rule that failed may be tried again for another row a million rounds later).
_LANE_BITS = _ROUND_BITS = 20
_MOST_ROWS = 1 << (32 - _LANE_BITS)

Rules = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class NCASettings(SourceSettings):
    measured = {"": {}, "all rules": {"band": [0.0, 2.0]}}

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
            yield "colours", f"{self.colours} in patches of {self.patch} need {needed} tokens: {exceeds(model)}"
        if self.grid % high or self.grid % wide:
            yield "grid", f"{self.grid} is not a multiple of the patch's sides {self.patch}"
        elif model and frame > model.context + 1:
            yield "grid", f"{self.grid} makes frames of {frame} tokens, but a row holds {model.context + 1}"
        if 0 < self.temperature < 1e-6:
            yield "temperature", f"{self.temperature} is neither 0 (the most likely colour) nor at least 1e-6"
        if self.band[0] >= self.band[1]:
            yield "band", f"{self.band} is not [low, high]"

    def launches_many(self, model: ModelConfig) -> bool:
        """Rule after rule is tried, and gzip judges each on the CPU."""
        return tuple(self.band) != ALL_RULES

    def build(self, vocabulary: int) -> NCASource:
        return NCASource(vocabulary=vocabulary, **self.arguments())


class NCASource(Source):
    """A random automaton a row; reads neither conditions nor seeds.

    Raises UserError for a band that fewer than 2 % of 300 rules meet.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        colours: int = 4,
        grid: int = 12,
        patch: Sequence[int] = (2, 2),
        burn_in: int = 10,
        stride: int = 1,
        temperature: float = 1e-4,
        identity_bias: float = 0.0,
        wrap_channels: bool = False,
        delimiters: bool = False,
        band: Sequence[float] = (0.75, 2.0),
        permute: bool = True,
    ) -> None:
        check_vocabulary(vocabulary)
        if colours < 2 or len(patch) != 2 or min(patch) < 1:
            raise ValueError(f"colours is {colours}, patch {list(patch)}; allowed: 2 or more, two numbers of 1 or more")
        needed = tokens_needed(colours, patch, delimiters)
        if needed > vocabulary:
            raise ValueError(
                f"{colours} colours in patches of {list(patch)} are {needed} tokens; allowed: {vocabulary}"
            )
        if grid % patch[0] or grid % patch[1] or grid < 3:
            raise ValueError(f"grid is {grid}; allowed: 3 or more, a multiple of the patch's sides {list(patch)}")
        if burn_in < 0 or stride < 1:
            raise ValueError(f"burn_in is {burn_in}, stride {stride}; allowed: 0 or more, 1 or more")
        if not (temperature == 0 or 1e-6 <= temperature < math.inf):
            raise ValueError(f"temperature is {temperature}; allowed: 0 (always the likeliest) or at least 1e-6")
        if not abs(identity_bias) <= 100:
            raise ValueError(f"identity_bias is {identity_bias}; allowed: -100 to 100")
        if len(band) != 2 or not 0 <= band[0] < band[1]:
            raise ValueError(f"band is {list(band)}; allowed: two numbers [low, high], 0 <= low < high")
        self.vocabulary, self.colours, self.grid, self.patch = vocabulary, colours, grid, tuple(patch)
        self.burn_in, self.stride, self.temperature, self.identity_bias = burn_in, stride, temperature, identity_bias
        self.wrap_channels, self.delimiters, self.permute = wrap_channels, delimiters, permute
        self.band = (float(band[0]), float(band[1]))
        self.frame_tokens = frame_tokens(grid, patch, delimiters)
        self._neighbours = _neighbours(grid)
        self.ceiling = 1.0
        if self.band != ALL_RULES:
            noise = Stream(0, [0], [0]).integers(
                Purpose.UNIFORM_ROW, colours ** (patch[0] * patch[1]), 20, self._filtered
            )
            self.ceiling = float(self.scores(noise[0]).mean())
            self._check_band()

    def write(self, stream: Stream, conditions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(L, rows, length) of the shape of `conditions`. Waits for a GPU when the band filters rules, for gzip."""
        lanes, rows, length = conditions.shape
        if self.frame_tokens > length or rows > _MOST_ROWS:
            raise ValueError(
                f"a frame has {self.frame_tokens} tokens, a lane {rows} rows; allowed: at most the {length} of a row, "
                f"and {_MOST_ROWS} rows"
            )
        own = _of_rows(stream, rows)
        count = -(-length // self.frame_tokens)
        frames = self._frames(own, self._accepted(own), count, self.stride, _SHOWN)
        if self.delimiters:
            first = self.colours ** (self.patch[0] * self.patch[1])
            frames = torch.nn.functional.pad(frames, (1, 0), value=first)
            frames = torch.nn.functional.pad(frames, (0, 1), value=first + 1)
        tokens = frames.flatten(1)[:, :length].reshape(lanes, rows, length)
        if self.permute:
            tokens = renamed(tokens, stream, Purpose.PERMUTATION, self.vocabulary)
        return tokens.to(token_dtype(self.vocabulary))

    def scores(self, tokens: torch.Tensor) -> torch.Tensor:
        """Each row's compressed share of its bytes, over the ceiling: (rows,) float64 from (rows, count) tokens."""
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            sizes = list(threads.map(_gzip_size, tokens.cpu().numpy().astype("<i4")))
        return torch.tensor(sizes, dtype=torch.float64) / (4 * tokens.shape[1]) / self.ceiling

    @property
    def _filtered(self) -> int:
        """Tokens by which a rule is judged."""
        return FILTER_FRAMES * self.grid**2 // (self.patch[0] * self.patch[1])

    def _check_band(self) -> None:
        stream = Stream(0, range(_TRIED_RULES), [0] * _TRIED_RULES)
        scores = self._judged(stream, self._rules(stream))
        share = self._within(scores).double().mean().item()
        if share < _LEAST_ACCEPTED:
            places = torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=torch.float64)
            found = ", ".join(f"{score:.2f}" for score in torch.quantile(scores, places).tolist())
            raise UserError(
                f"data.sources: the nca source's band {list(self.band)} accepts {share:.1%} of {_TRIED_RULES} random "
                f"rules with {self.colours} colours; it must accept {_LEAST_ACCEPTED:.0%}, or rows would wait for "
                f"ever. Lowest, quartiles and highest of their scores are {found}: choose a band among these, or "
                f"{list(ALL_RULES)} for all rules."
            )

    def _within(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.gt(self.band[0]) & scores.lt(self.band[1])

    def _accepted(self, stream: Stream) -> Rules:
        """For each pair of the stream the first rule whose score lies in the band.

        Rows without one try several next candidates at once, as many as fill the call up.
        """
        found = self._rules(_attempts(stream, 0, 1))
        if self.band == ALL_RULES:
            return found
        pending, tried = torch.arange(len(stream), device=stream.device), 0
        while tried < _MOST_ATTEMPTS:
            each = max(1, min(_MOST_AT_ONCE, len(stream) // len(pending)))
            part = _attempts(stream.at(pending), tried, each)
            rules = self._rules(part)
            passed = self._within(self._judged(part, rules)).to(stream.device).view(-1, each)
            first = (passed.cumsum(dim=1) == 0).sum(dim=1)
            settled = first < each
            chosen = (torch.arange(len(pending), device=stream.device) * each + first)[settled]
            for kept, candidates in zip(found, rules, strict=True):
                kept[pending[settled]] = candidates[chosen]
            pending, tried = pending[~settled], tried + each
            if not len(pending):
                return found
        raise RuntimeError(f"no rule for {len(pending)} rows in {tried} attempts")

    def _rules(self, stream: Stream) -> Rules:
        """A random rule for each of the stream's R pairs: the three layers' weights in whole multiples of 2^-14.

        The first is (R, 9 * colours, PERCEPTION) float32, what a neighbour of a colour adds to each channel: 24 bits
        hold their sums. The others are (R, PERCEPTION, HIDDEN) and (R, HIDDEN, colours) float64.
        """

        def weights(purpose: Purpose, fan_in: int, *shape: int) -> torch.Tensor:
            height = stream.uniform(purpose, *shape).to(torch.float64)
            cut = math.erf(_CUT / math.sqrt(2))
            normal = height.mul_(2).sub_(1).mul_(cut).erfinv_().mul_(math.sqrt(2))
            return normal.mul_(1 / (_CUT_DEVIATION * math.sqrt(fan_in) * _UNIT)).round_()

        channels = self.colours + 2 * self.wrap_channels
        kernel = weights(Purpose.NCA_PERCEPTION, 9 * channels, 9, channels, PERCEPTION)
        if self.wrap_channels:
            # The channels are: last colour, first, ..., last, first.
            first, last = kernel[:, :, -1].clone(), kernel[:, :, 0].clone()
            kernel = kernel[:, :, 1:-1]
            kernel[:, :, 0] += first
            kernel[:, :, -1] += last
        middle = weights(Purpose.NCA_HIDDEN, PERCEPTION, PERCEPTION, HIDDEN)
        output = weights(Purpose.NCA_OUTPUT, HIDDEN, HIDDEN, self.colours)
        return kernel.flatten(1, 2).to(torch.float32), middle, output

    def _judged(self, stream: Stream, rules: Rules) -> torch.Tensor:
        """The rules' scores, (R,) float64 on the CPU."""
        return self.scores(self._frames(stream, rules, FILTER_FRAMES, 1, _FILTERED).flatten(1))

    def _frames(
        self, stream: Stream, rules: Rules, count: int, stride: int, purposes: tuple[Purpose, Purpose, Purpose]
    ) -> torch.Tensor:
        """`count` frames of each rule's trajectory, (R, count, patches) int64."""
        colour, start, noise = purposes
        steps, cells = self.burn_in + (count - 1) * stride, self.grid**2
        shares = stream.normal(colour, self.colours).to(torch.float64).exp_()
        state = drawn(shares, stream.uniform(start, cells))
        heights = stream.uniform(noise, steps, cells) if self.temperature > 0 else None
        frames = []
        for step in range(steps + 1):
            if step >= self.burn_in and (step - self.burn_in) % stride == 0:
                frames.append(self._patches(state))
            if step < steps:
                state = self._next(state, rules, None if heights is None else heights[:, step])
        return torch.stack(frames, dim=1)

    def _next(self, state: torch.Tensor, rules: Rules, heights: torch.Tensor | None) -> torch.Tensor:
        """The state (R, cells) int64 after one step."""
        perception, middle, output = rules
        first_entries = torch.arange(len(state), device=state.device) * perception.shape[1]
        around = (state + first_entries[:, None]).index_select(1, self._neighbours.to(state.device))
        entries = around.view(-1, 9).add_(torch.arange(9, device=state.device) * self.colours)
        seen = torch.nn.functional.embedding_bag(entries, perception.flatten(0, 1), mode="sum")
        hidden = torch.bmm(seen.to(torch.float64).view(len(state), -1, PERCEPTION), middle).relu_()
        logits = torch.bmm(hidden, output)
        if self.identity_bias:
            logits += torch.nn.functional.one_hot(state, self.colours) * round(self.identity_bias / _UNIT**3)
        largest = logits.amax(dim=-1, keepdim=True)
        if heights is None:
            # The first of equally large ones: every cell without an active unit has all of its logits 0.
            return (logits < largest).to(torch.int64).cumprod(dim=-1).sum(dim=-1)
        # What is below 2^-32 counts as nothing, and the exponential of very small numbers is slow.
        shares = logits.sub_(largest).mul_(_UNIT**3).div_(self.temperature).clamp_(min=-30).exp_()
        return drawn(shares, heights[..., None])[..., 0]

    def _patches(self, state: torch.Tensor) -> torch.Tensor:
        """(R, patches) int64 tokens of a state (R, cells)."""
        high, wide = self.patch
        cells = state.view(-1, self.grid // high, high, self.grid // wide, wide).transpose(2, 3).flatten(3)
        values = self.colours ** torch.arange(high * wide, device=state.device)
        return (cells * values).sum(dim=-1).flatten(1)


def _gzip_size(tokens: numpy.ndarray) -> int:
    """Bytes of a gzip file of the tokens; zlib lets other threads run meanwhile."""
    gzip = zlib.compressobj(9, zlib.DEFLATED, 31)
    return len(gzip.compress(tokens.tobytes())) + len(gzip.flush())


def tokens_needed(colours: int, patch: Sequence[int], delimiters: bool) -> int:
    """Ids that an automaton writes."""
    return colours ** (patch[0] * patch[1]) + 2 * delimiters


def frame_tokens(grid: int, patch: Sequence[int], delimiters: bool) -> int:
    """Tokens of one frame."""
    return grid * grid // (patch[0] * patch[1]) + 2 * delimiters


def _of_rows(stream: Stream, rows: int) -> Stream:
    """A pair of its own for each row of each pair: the row's number lies above the lane's."""
    numbers = torch.arange(rows, device=stream.device) << _LANE_BITS
    lanes = (stream.lanes[:, None] + numbers).flatten()
    return Stream(stream.seed, lanes, stream.rounds.repeat_interleave(rows), stream.device)


def _attempts(stream: Stream, tried: int, count: int) -> Stream:
    """`count` pairs for each pair of the stream: its attempts number `tried` and on."""
    numbers = torch.arange(tried, tried + count, device=stream.device) << _ROUND_BITS
    rounds = (stream.rounds[:, None] + numbers).flatten()
    return Stream(stream.seed, stream.lanes.repeat_interleave(count), rounds, stream.device)


def _neighbours(grid: int) -> torch.Tensor:
    """(cells * 9,) int64: for each cell the nine around it, itself included, row by row, on the torus."""
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    around = [((row + down) % grid) * grid + (column + right) % grid for down, right in shifts]
    return torch.stack(around, dim=-1).flatten()
