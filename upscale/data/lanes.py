"""Lanes: the buffers of synthetic rows and their rounds (Bloem 2025, Algorithm 1, made elastic).

A lane is a buffer of rows, a count of rounds and a random stream keyed by (seed, lane, round). A round is a pure
function of the buffer and the round's number, so a lane is the unit that moves when the world changes: any division of
the lanes among ranks gives the same rows, bit for bit.
"""

import math
from collections.abc import Iterator, Sequence

import torch

from upscale.config import Config, buffer_rows, enriched_rows
from upscale.config.protocols import Control
from upscale.data.controls import controlled
from upscale.randomness.streams import Purpose, Stream
from upscale.sources import Source
from upscale.sources.tokens import check_vocabulary, ids, token_dtype

NO_SOURCE = 255
"""The origin of rows that no source wrote: those a buffer starts with, resets, and all of an older checkpoint."""


def owned_lanes(lanes_total: int, rank: int, world_size: int) -> range:
    """The lanes of one rank: contiguous, in rank order, the first ranks one more where the division is uneven."""
    if not 1 <= world_size <= lanes_total:
        raise ValueError(
            f"world size {world_size} with {lanes_total} lanes; allowed: 1 to {lanes_total} ranks, each with at "
            "least one lane (raise data.lanes for more)"
        )
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank}; allowed: 0 to {world_size - 1}")
    share, extra = divmod(lanes_total, world_size)
    start = rank * share + min(rank, extra)
    return range(start, start + share + (rank < extra))


class Lanes:
    """The lanes of one rank and the training rows they give.

    `lanes` are this rank's numbers among all lanes. Each round of a lane enriches `enrich_rows` of its `buffer_rows`
    rows and gives at most `draw` rows for training. `reset_constant` and `reset_noise` are shares of the enriched rows.
    `sources` are (source, weight) pairs, of which each round of a lane draws one. With `iterate` off, sources read
    fresh constant and noise rows instead of the buffer's (the paper's LSTM-noit); buffer_rows = enrich_rows gives its
    LSTM-nobuf. Rows are (context + 1) tokens, uint8, or int16 for a vocabulary above 256 or `masked` sources, some of
    whose tokens are no targets. `order_seed` (None: `seed`) draws which rows of a buffer are trained on, and `control`
    is what `data.control` makes of them.
    """

    def __init__(
        self,
        *,
        seed: int,
        lanes: Sequence[int],
        context: int,
        vocabulary: int,
        draw: int,
        enrich_rows: int,
        buffer_rows: int,
        reset_constant: float,
        reset_noise: float,
        sources: Sequence[tuple[Source, float]],
        iterate: bool = True,
        masked: bool = False,
        order_seed: int | None = None,
        control: Control = "none",
        device: torch.device | str = "cpu",
    ) -> None:
        _check(len(lanes) > 0, f"lanes is {list(lanes)}", "at least one lane a rank")
        _check(len(set(lanes)) == len(lanes), f"lanes is {list(lanes)}", "each lane once")
        _check(context >= 1, f"context is {context}", "1 or more")
        check_vocabulary(vocabulary)
        _check(buffer_rows >= 1, f"buffer_rows is {buffer_rows}", "1 or more")
        _check(1 <= draw <= buffer_rows, f"draw is {draw}", f"1 to buffer_rows ({buffer_rows})")
        _check(1 <= enrich_rows <= buffer_rows, f"enrich_rows is {enrich_rows}", f"1 to buffer_rows ({buffer_rows})")
        shares = f"reset_constant is {reset_constant} and reset_noise {reset_noise}"
        _check(min(reset_constant, reset_noise) >= 0, shares, "0 or more each")
        _check(reset_constant + reset_noise <= 1 + 1e-9, shares, "shares of the enriched rows, at most 1 together")
        _check(0 < len(sources) < NO_SOURCE, f"there are {len(sources)} sources", f"1 to {NO_SOURCE - 1}")
        for source, weight in sources:
            _check(0 <= weight < math.inf, f"a source's weight is {weight}", "0 or more")
            _check(
                source.seed_tokens <= context + 1,
                f"a source's seed has {source.seed_tokens} tokens",
                f"at most a row's ({context + 1})",
            )
        _check(sum(weight for _, weight in sources) > 0, "the sources' weights sum to 0", "a positive sum")
        self.seed, self.order_seed, self.control = seed, seed if order_seed is None else order_seed, control
        self.lanes = tuple(lanes)
        self.length = context + 1
        self.vocabulary = vocabulary
        self.rows_per_round = draw
        self.enrich_rows = enrich_rows
        self.buffer_rows = buffer_rows
        self.reset_constant = reset_constant
        self.reset_noise = reset_noise
        self.iterate = iterate
        self.device = torch.device(device)
        self.rounds = torch.zeros(len(lanes), dtype=torch.int64)
        """Rounds run so far, (lanes,) int64, on the CPU."""
        methods = {source.method(self.device) for source, weight in sources if weight} - {"exact"}
        self.method = ", ".join(sorted(methods)) or "exact"
        """How the sources compute: equal rows need equal ones, unless it is exact, by integers alone."""
        self._sources = [source for source, _ in sources]
        self._cumulative_weights = torch.tensor([weight for _, weight in sources], dtype=torch.float64).cumsum(0)
        self._places = torch.arange(len(lanes), device=self.device)
        start = Stream(seed, self.lanes, self.rounds, self.device)
        self.buffers = self._constant_and_noise(start, Purpose.START_CONSTANT, Purpose.START_NOISE, buffer_rows)
        """(lanes, buffer_rows, context + 1) tokens, on the device."""
        if masked:
            self.buffers = self.buffers.to(torch.int16)
        self._origins = torch.full((len(lanes), buffer_rows), NO_SOURCE, dtype=torch.uint8, device=self.device)
        self._drawn: list[torch.Tensor] = []

    def draw(self, rows_per_lane: int) -> torch.Tensor:
        """Training rows, (lanes * rows_per_lane, context + 1) tokens, lane after lane.

        Runs ceil(rows_per_lane / draw) rounds of every lane; the last one draws what is missing.
        """
        _check(rows_per_lane >= 1, f"rows_per_lane is {rows_per_lane}", "1 or more")
        self._drawn.clear()
        starts = range(0, rows_per_lane, self.rows_per_round)
        rounds = [self._round(min(self.rows_per_round, rows_per_lane - start)) for start in starts]
        return torch.cat(rounds, dim=1).flatten(0, 1)

    def origins(self) -> torch.Tensor:
        """The number of the source that wrote each of the rows drawn last, or NO_SOURCE: (rows,) uint8."""
        return torch.cat(self._drawn, dim=1).flatten()

    def state(self) -> dict[str, torch.Tensor]:
        """A copy of all that a lane is: `buffers` (lanes, buffer_rows, context + 1), `rounds` (lanes,) int64, and
        `origins` (lanes, buffer_rows) uint8, the number of the source that wrote each row."""
        return {"buffers": self.buffers.clone(), "rounds": self.rounds.clone(), "origins": self._origins.clone()}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Continues from these lanes' state, whichever ranks wrote it; `origins` may be missing."""
        unknown = torch.full_like(self._origins, NO_SOURCE)
        for name, mine in (("buffers", self.buffers), ("rounds", self.rounds), ("origins", self._origins)):
            given = state.get("origins", unknown) if name == "origins" else state[name]
            _check(
                given.shape == mine.shape and given.dtype == mine.dtype,
                f"the lanes' {name} are {tuple(given.shape)} {given.dtype}",
                f"{tuple(mine.shape)} {mine.dtype}, as this configuration and its {len(self.lanes)} lanes want it",
            )
            mine.copy_(given)

    def _round(self, count: int) -> torch.Tensor:
        """One round of every lane; its `count` training rows, (lanes, count, context + 1)."""
        stream = Stream(self.seed, self.lanes, self.rounds, self.device)
        picked = stream.choice(Purpose.ENRICH, self.buffer_rows, self.enrich_rows)
        written = torch.empty(*picked.shape, self.length, dtype=self.buffers.dtype, device=self.device)
        origins = torch.empty(picked.shape, dtype=torch.uint8, device=self.device)
        for number, source, places in self._writers():
            part = stream.at(places)
            conditions, seeds = self._read(part, places, picked[places], source.seed_tokens)
            rows = source.write(part, conditions, seeds)
            # Never to a smaller type, in which tokens that are no targets would become others.
            written[places] = rows.to(torch.promote_types(rows.dtype, written.dtype))
            origins[places] = number
        lanes = self._places[:, None]
        self.buffers[lanes, picked], self._origins[lanes, picked] = self._with_resets(stream, written, origins)
        order = Stream(self.order_seed, self.lanes, self.rounds, self.device)
        self.rounds += 1
        chosen = order.choice(Purpose.TRAIN, self.buffer_rows, count)
        self._drawn.append(self._origins[lanes, chosen])
        return controlled(self.control, self.buffers[lanes, chosen], order)

    def _writers(self) -> Iterator[tuple[int, Source, torch.Tensor]]:
        """Each source's number and itself, with the places of the lanes for which it writes this round.

        Drawn on the CPU: the groups' sizes shape what follows, and reading them from a GPU would wait for it.
        """
        if len(self._sources) == 1:
            yield 0, self._sources[0], self._places
            return
        drawn = Stream(self.seed, self.lanes, self.rounds).uniform(Purpose.SOURCE).to(torch.float64)
        chosen = torch.searchsorted(self._cumulative_weights, drawn * self._cumulative_weights[-1], right=True)
        for number, source in enumerate(self._sources):
            places = (chosen == number).nonzero()[:, 0]
            if len(places):
                yield number, source, places.to(self.device)

    def _read(
        self, stream: Stream, places: torch.Tensor, picked: torch.Tensor, seed_tokens: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Conditions (L, enrich_rows, context + 1) and seeds (L, enrich_rows, seed_tokens) of these lanes.

        Without iteration both are fresh rows, independent of each other.
        """
        if not self.iterate:
            conditions = self._constant_and_noise(
                stream, Purpose.FRESH_CONDITION_CONSTANT, Purpose.FRESH_CONDITION_NOISE, self.enrich_rows
            )
            seeds = self._constant_and_noise(
                stream, Purpose.FRESH_SEED_CONSTANT, Purpose.FRESH_SEED_NOISE, self.enrich_rows
            )
            return conditions, seeds[..., :seed_tokens]
        rows = stream.integers(Purpose.SEED_ROW, self.buffer_rows, self.enrich_rows)
        offsets = stream.integers(Purpose.SEED_OFFSET, self.length - seed_tokens + 1, self.enrich_rows)
        tokens = offsets[..., None] + torch.arange(seed_tokens, device=self.device)
        read = self.buffers[places[:, None], picked], self.buffers[places[:, None, None], rows[..., None], tokens]
        return tuple(ids(each).to(token_dtype(self.vocabulary)) for each in read)

    def _with_resets(
        self, stream: Stream, written: torch.Tensor, origins: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows written and their origins, the first few of each lane replaced by constant rows, the next by noise.

        Which ones does not matter: the order of the picked rows is random. One uniform u rounds both counts, floor(c +
        u) and floor(c + n + u) - floor(c + u), so that their means are the shares asked for, and their sum fits.
        """
        constant = _near_integer(self.reset_constant * self.enrich_rows)
        noise = _near_integer(self.reset_noise * self.enrich_rows)
        drawn = stream.uniform(Purpose.RESET_COUNT, 1).to(torch.float64)
        constant_end = (drawn + constant).floor().to(torch.int64)
        noise_end = (drawn + _near_integer(constant + noise)).floor().to(torch.int64)
        position = torch.arange(self.enrich_rows, device=self.device)
        tokens = stream.integers(Purpose.RESET_CONSTANT, self.vocabulary, self.enrich_rows).to(written.dtype)
        noise_rows = stream.integers(Purpose.RESET_NOISE, self.vocabulary, max(1, math.ceil(noise)), self.length)
        turn = (position - constant_end).clamp(0, noise_rows.shape[1] - 1)
        noise_rows = noise_rows.to(written.dtype)[self._places[:, None], turn]
        written = torch.where((position < noise_end)[..., None], noise_rows, written)
        written = torch.where((position < constant_end)[..., None], tokens[..., None], written)
        return written, torch.where(position < noise_end, NO_SOURCE, origins).to(torch.uint8)

    def _constant_and_noise(self, stream: Stream, constant: Purpose, noise: Purpose, rows: int) -> torch.Tensor:
        """(L, rows, context + 1): half constant rows, one token each, then half uniform noise."""
        tokens = stream.integers(constant, self.vocabulary, rows // 2, 1).expand(-1, -1, self.length)
        noise_rows = stream.integers(noise, self.vocabulary, rows - rows // 2, self.length)
        return torch.cat([tokens, noise_rows], dim=1).to(token_dtype(self.vocabulary))


def _near_integer(count: float) -> float:
    """The integer that a product of floats missed by an ulp: 20/138 of 138 rows must be 20 in every round."""
    return float(round(count)) if abs(count - round(count)) < 1e-9 * max(1.0, count) else count


def _check(condition: bool, given: str, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{given}; allowed: {allowed}")


def from_config(config: Config, lanes: Sequence[int], device: torch.device | str) -> Lanes:
    """The given lanes of a resolved config."""
    data = config.data
    return Lanes(
        seed=config.seed("rows"),
        order_seed=config.seed("order"),
        lanes=lanes,
        context=config.model.context,
        vocabulary=config.model.vocabulary,
        draw=data.draw,
        enrich_rows=enriched_rows(data),
        buffer_rows=buffer_rows(data),
        reset_constant=data.reset.constant,
        reset_noise=data.reset.noise,
        sources=[(source.build(config.model.vocabulary), source.weight) for source in data.sources],
        iterate=data.iterate,
        masked=data.masked,
        control=data.control,
        device=device,
    )
