"""Lanes, against Algorithm 1 in plain Python lists, and against themselves in other worlds."""

import multiprocessing
import re

import pytest
import torch

from tests.reference.lanes import Lane
from tests.reference.recurrent import recurrent_source
from upscale.data.lanes import NO_SOURCE, Lanes, owned_lanes
from upscale.data.sample import printable, sample_lines
from upscale.randomness.streams import Stream
from upscale.sources.automaton import AutomatonSource
from upscale.sources.base import Source
from upscale.sources.dyck import DyckSource
from upscale.sources.nca import NCASource
from upscale.sources.pointwise import PointwiseSource
from upscale.sources.recurrent import GRUSource, LSTMSource
from upscale.sources.tokens import read_only
from upscale.sources.transformer import TransformerSource
from upscale.sources.uniform import UniformSource
from upscale.sources.utm import UTMSource

PAPER = dict(context=512, draw=69, enrich_rows=138, buffer_rows=2760, reset_constant=20 / 138, reset_noise=20 / 138)


pytestmark = pytest.mark.usefixtures("one_thread")


class Depth(Source):
    """A source that counts: each row is its condition plus one. It keeps what it was given."""

    def __init__(self, seed_tokens=2):
        self.seed_tokens = seed_tokens
        self.given = []

    def write(self, stream, conditions, seeds):
        self.given.append((conditions.clone(), seeds.clone(), stream.lanes.clone()))
        return conditions + 1


def arguments(**changes):
    """A small Lanes."""
    base = dict(
        seed=3,
        lanes=range(4),
        context=20,
        vocabulary=256,
        draw=4,
        enrich_rows=8,
        buffer_rows=24,
        reset_constant=20 / 138,
        reset_noise=20 / 138,
        sources=[(UniformSource(vocabulary=256), 1.0)],
    )
    return {**base, **changes}


def mixture(vocabulary=256):
    """Sources of all kinds in single precision, as training uses them."""
    small = dict(vocabulary=vocabulary, hidden=20, multiplier=(0.0, 4.0))
    return [(LSTMSource(**small), 3.0), (GRUSource(**small), 2.0), (UniformSource(vocabulary=vocabulary), 1.0)]


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(vocabulary=5, reset_constant=0.5, reset_noise=0.5),
        dict(reset_constant=0.3, reset_noise=0.0, draw=24),
        dict(iterate=False, enrich_rows=7),
        dict(enrich_rows=24),
        dict(seed=2**63 + 9, lanes=[5, 0, 1000], buffer_rows=25),
    ],
    ids=["plain", "all reset", "no noise", "no iteration", "no buffer", "other lanes"],
)
def test_rows_are_those_of_algorithm_1(changes):
    """Against the algorithm in plain lists, one lane at a time, over several draws that end in a part of a round.

    The LSTM and the GRU on the other side are torch.nn's, token by token, in float64.
    """
    given = arguments(**changes)
    small = dict(vocabulary=given["vocabulary"], hidden=8, seed_tokens=3)
    noise = UniformSource(vocabulary=given["vocabulary"])
    exact = dict(small, dtype=torch.float64)
    given["sources"] = [(LSTMSource(**exact), 2.0), (noise, 1.0), (GRUSource(**exact), 1.5)]
    lanes = Lanes(**given)
    given["sources"] = [(recurrent_source("lstm", **small), 2.0), (noise, 1.0), (recurrent_source("gru", **small), 1.5)]
    alone = [Lane(lane=lane, **given) for lane in given.pop("lanes")]
    assert lanes.buffers.tolist() == [lane.buffer for lane in alone]
    for count in (4, 10, 1):
        rows = lanes.draw(count)
        assert rows.dtype == torch.uint8 and rows.is_contiguous()
        assert rows.tolist() == [row for lane in alone for row in lane.draw(count)]
    assert lanes.buffers.tolist() == [lane.buffer for lane in alone]
    assert lanes.rounds.tolist() == [lane.round for lane in alone]


def test_a_sources_output_is_enriched_by_another():
    """Against a UTM alone: in a mixture with an LSTM, the LSTM's conditions are rows that the UTM wrote."""
    programs, writer = UTMSource(vocabulary=256, permute=False), LSTMSource(vocabulary=256, hidden=8)
    read, written = [], []

    class Spy(Source):
        def __init__(self, source):
            self.source, self.seed_tokens = source, source.seed_tokens

        def write(self, stream, conditions, seeds):
            rows = self.source.write(stream, conditions, seeds)
            if self.source is writer:
                read.extend(conditions.flatten(0, 1).tolist())
            else:
                written.extend(rows.flatten(0, 1).tolist())
            return rows

    lanes = Lanes(**arguments(sources=[(Spy(programs), 1.0), (Spy(writer), 1.0)], reset_constant=0.0, reset_noise=0.0))
    for _ in range(12):
        lanes.draw(4)
    assert len(written) > 100
    # Rows that end in a loop of at least three tokens tell the UTM's from constants.
    kept = {tuple(row) for row in written if len(set(row)) > 2}
    assert sum(tuple(row) in kept for row in read) > 10


def test_sources_of_one_mixture_give_the_same_rows_in_any_world():
    """Against one rank with all eight lanes, in a mixture of every kind, with a vocabulary beyond bytes."""
    vocabulary = 300
    small = dict(vocabulary=vocabulary)
    sources = [
        (LSTMSource(**small, hidden=8), 1.0),
        (TransformerSource(**small, hidden=8), 1.0),
        (UTMSource(**small, memory=100, steps=1000), 1.0),
        (NCASource(**small, grid=6, band=(0.0, 2.0)), 1.0),
        (AutomatonSource(**small), 1.0),
        (PointwiseSource(**small), 1.0),
        (DyckSource(**small), 1.0),
        (UniformSource(**small), 0.0),
    ]
    given = arguments(vocabulary=vocabulary, context=60, sources=sources)
    everything = Lanes(**{**given, "lanes": range(8)})
    ranks = [Lanes(**{**given, "lanes": owned_lanes(8, rank, 3)}) for rank in range(3)]
    for count in (4, 9):
        drawn = everything.draw(count)
        assert drawn.dtype == torch.int16 and torch.equal(torch.cat([rank.draw(count) for rank in ranks]), drawn)


@pytest.mark.parametrize("world_size", [2, 3, 5, 8])
def test_any_world_gives_the_same_rows(world_size):
    """Against one rank with all eight lanes: bit for bit, uneven shares included, for each lane and each draw."""
    given = arguments(context=60, sources=mixture())
    everything = Lanes(**{**given, "lanes": range(8)})
    ranks = [Lanes(**{**given, "lanes": owned_lanes(8, rank, world_size)}) for rank in range(world_size)]
    assert sum(len(rank.lanes) for rank in ranks) == 8
    for count in (4, 3, 9):
        assert torch.equal(torch.cat([rank.draw(count) for rank in ranks]), everything.draw(count))
    for name, value in everything.state().items():
        assert torch.equal(torch.cat([rank.state()[name] for rank in ranks]), value)


def test_real_processes_give_the_same_rows():
    """Against one process: two processes with three lanes and two, each with its own number of threads."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        parts = pool.starmap(_rows_of_a_process, [(rank, 2) for rank in range(2)])
    assert [len(part) for part in parts] == [3 * 5, 2 * 5]
    assert sum(parts, []) == _rows_of_a_process(0, 1)


def _rows_of_a_process(rank, world_size):
    torch.set_num_threads(1 + rank)
    return Lanes(**arguments(lanes=owned_lanes(5, rank, world_size), context=40, sources=mixture())).draw(5).tolist()


def test_a_state_resumes_in_any_world():
    """Against the uninterrupted run: two ranks' states continue as three ranks, and as one."""
    given = arguments(context=40, sources=mixture())
    straight = Lanes(**{**given, "lanes": range(6)})
    two = [Lanes(**{**given, "lanes": owned_lanes(6, rank, 2)}) for rank in range(2)]
    for lanes in (straight, *two):
        lanes.draw(9)
    states = [lanes.state() for lanes in two]
    state = {name: torch.cat([part[name] for part in states]) for name in states[0]}
    expected = straight.draw(7)
    for lanes in two:
        lanes.draw(2)
    for world_size in (1, 3):
        drawn = []
        for rank in range(world_size):
            own = owned_lanes(6, rank, world_size)
            lanes = Lanes(**{**given, "lanes": own})
            lanes.load_state({name: value[own.start : own.stop] for name, value in state.items()})
            drawn.append(lanes.draw(7))
        assert torch.equal(torch.cat(drawn), expected)


def test_rows_know_the_source_that_wrote_them():
    """Against what each source writes: 0 and 1 everywhere; resets and starts are of none, nor is an older state."""

    class Constant(Source):
        def __init__(self, token):
            self.token = token

        def write(self, stream, conditions, seeds):
            return torch.full_like(conditions, self.token)

    given = arguments(sources=[(Constant(7), 1.0), (Constant(9), 2.0)])
    lanes = Lanes(**given)
    for count in (4, 9, 4, 30):
        rows = lanes.draw(count)
        for row, origin in zip(rows.tolist(), lanes.origins().tolist(), strict=True):
            assert origin == {(7,): 0, (9,): 1}.get(tuple(set(row)), NO_SOURCE)
    state = lanes.state()
    assert set(lanes.origins().tolist()) == {0, 1, NO_SOURCE}
    again, older = Lanes(**given), Lanes(**given)
    again.load_state(state)
    older.load_state({name: value for name, value in state.items() if name != "origins"})
    assert torch.equal(again.draw(4), older.draw(4))
    assert again.origins().tolist() != older.origins().tolist() and NO_SOURCE in older.origins()


def test_a_draw_is_the_same_in_one_piece_or_by_rounds():
    """Against single rounds: draw(3 rounds' rows) is three draws, lane by lane."""
    whole, pieces = Lanes(**arguments()), Lanes(**arguments())
    rows = whole.draw(12).view(4, 12, 21)
    assert torch.equal(rows, torch.cat([pieces.draw(4).view(4, 4, 21) for _ in range(3)], dim=1))
    assert whole.rounds.tolist() == [3] * 4


def test_the_buffer_starts_half_constant_half_noise():
    """Against the paper: half constant rows with a random token each, half uniform noise."""
    buffers = Lanes(**{**arguments(**PAPER), "lanes": range(2)}).buffers
    assert buffers.shape == (2, 2760, 513) and buffers.dtype == torch.uint8
    constant = (buffers == buffers[..., :1]).all(dim=-1)
    assert constant[:, :1380].all() and not constant[:, 1380:].any()
    assert len(buffers[0, :1380, 0].unique()) > 250
    counts = torch.bincount(buffers[:, 1380:].flatten().long(), minlength=256).double()
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 255 + 5 * (2 * 255) ** 0.5


def test_the_papers_resets_are_exact():
    """Against 20 constant and 20 noise rows of 138 in every round, and 98 rows that keep what the source wrote.

    The source writes rows that are neither: two tokens in turn.
    """

    class Turns(Source):
        seed_tokens = 1

        def write(self, stream, conditions, seeds):
            return (torch.arange(conditions.shape[-1]) % 2).to(torch.uint8).expand_as(conditions)

    lanes = Lanes(**arguments(**{**PAPER, "context": 40, "draw": 138, "buffer_rows": 138}, sources=[(Turns(), 1.0)]))
    for _ in range(100):
        rows = lanes.draw(138).view(4, 138, 41)
        constant = (rows == rows[..., :1]).all(dim=-1).sum(dim=1)
        noise = (rows.max(dim=-1).values - rows.min(dim=-1).values > 100).sum(dim=1)
        assert constant.tolist() == [20] * 4 and noise.tolist() == [20] * 4


@pytest.mark.parametrize(("constant", "noise", "rows"), [(20 / 138, 20 / 138, 16), (0.3, 0.7, 7), (0.45, 0.55, 16)])
def test_resets_keep_the_papers_ratio_on_average(constant, noise, rows):
    """Against share * rows: means over many lanes within 4 standard errors, each count within one of it, sums fit."""
    count = 4000
    lanes = Lanes(
        **arguments(
            lanes=range(count),
            context=1,
            vocabulary=1,
            enrich_rows=rows,
            reset_constant=constant,
            reset_noise=noise,
        )
    )
    written = torch.full((count, rows, 2), 9, dtype=torch.uint8)
    # With one token, 0, both kinds of reset write zeros; with no noise asked for, only the constants do.
    stream = Stream(3, range(count), [0] * count)
    origins = torch.zeros(count, rows, dtype=torch.uint8)
    total = (lanes._with_resets(stream, written, origins)[0][..., 0] == 0).sum(dim=1)
    lanes.reset_noise = 0.0
    constants = (lanes._with_resets(stream, written, origins)[0][..., 0] == 0).sum(dim=1)
    for counts, expected in ((total, (constant + noise) * rows), (constants, constant * rows)):
        assert ((counts - expected).abs() < 1 + 1e-6).all()
        assert abs(counts.double().mean() - expected) < 4 * 0.5 / count**0.5
    noises = (total - constants).double()
    assert abs(noises.mean() - noise * rows) < 4 * 0.71 / count**0.5


def test_rows_are_enriched_as_often_as_the_paper_has_it():
    """Against the arithmetic of 98 kept and 40 reset of 138: mean depth 2.45, 29 % of the rows of depth 0."""
    lanes = Lanes(**arguments(**{**PAPER, "context": 1}, lanes=range(4), vocabulary=1, sources=[(Depth(1), 1.0)]))
    depths = []
    for number in range(400):
        lanes.draw(1)
        if number >= 100:
            depths.append(lanes.buffers[..., 0].flatten())
    depths = torch.cat(depths)
    assert abs(depths.double().mean() - 98 / 40) < 0.03
    assert abs((depths == 0).double().mean() - 40 / 138) < 0.005


def test_conditions_and_seeds_come_from_the_buffer():
    """Against the buffer before the round: conditions are its rows, each once; each seed is a part of one."""
    source = Depth(seed_tokens=5)
    lanes = Lanes(**arguments(sources=[(source, 1.0)], reset_constant=0.0, reset_noise=0.0))
    offsets = set()
    for _ in range(30):
        before = lanes.buffers.tolist()
        lanes.draw(4)
        conditions, seeds, numbers = source.given[-1]
        assert numbers.tolist() == [0, 1, 2, 3]
        for lane in range(4):
            assert len({before[lane].index(row) for row in conditions[lane].tolist()}) >= 7
            for seed in seeds[lane].tolist():
                places = [start for row in before[lane] for start in range(17) if row[start : start + 5] == seed]
                assert places
                if len(places) == 1:
                    offsets.add(places[0])
    assert {0, 16} <= offsets


def test_without_iteration_sources_read_fresh_rows():
    """Against the paper's LSTM-noit: conditions half constant, half noise; seeds too, of their own; results kept."""
    source = Depth(seed_tokens=5)
    lanes = Lanes(**arguments(sources=[(source, 1.0)], iterate=False, reset_constant=0.0, reset_noise=0.0))
    for _ in range(2):
        lanes.draw(4)
    (first, _, _), (conditions, seeds, _) = source.given
    for rows in (conditions, seeds):
        constant = (rows == rows[..., :1]).all(dim=-1)
        assert constant[:, :4].all() and not constant[:, 4:].any()
    assert not torch.equal(conditions[:, :4, 0], seeds[:, :4, 0])
    assert not torch.equal(first, conditions)
    for lane in range(4):
        buffer = lanes.buffers[lane].tolist()
        assert all(row in buffer for row in (conditions[lane] + 1).tolist())


def test_a_mixture_follows_its_weights():
    """Against the weights 3 : 1 over lanes and rounds; each lane writes with one source a round, all of its rows."""
    first, second = Depth(), Depth(0)
    lanes = Lanes(**arguments(lanes=range(200), sources=[(first, 3.0), (second, 1.0)]))
    for _ in range(10):
        lanes.draw(1)
    counts = [sum(len(numbers) for _, _, numbers in source.given) for source in (first, second)]
    assert sum(counts) == 2000
    assert abs(counts[0] - 1500) < 4 * (2000 * 0.75 * 0.25) ** 0.5
    together = torch.cat([first.given[0][2], second.given[0][2]])
    assert together.sort().values.tolist() == list(range(200))


def test_the_papers_single_lane_runs():
    """Against its shape: 1 lane, 138 rows enriched of 2760, 69 drawn, rows of 513 tokens."""
    source = LSTMSource(vocabulary=256, hidden=38)
    lanes = Lanes(**arguments(**PAPER, lanes=[0], sources=[(source, 1.0)]))
    rows = lanes.draw(69)
    assert rows.shape == (69, 513) and rows.dtype == torch.uint8
    assert lanes.state()["buffers"].shape == (1, 2760, 513)
    assert len({tuple(row) for row in rows.tolist()}) >= 55


def test_training_rows_are_drawn_without_replacement():
    """Against the buffer: a draw of all of it is all of it, in another order."""
    lanes = Lanes(**arguments(draw=24))
    rows = lanes.draw(24).view(4, 24, 21)
    for lane in range(4):
        assert sorted(rows[lane].tolist()) == sorted(lanes.buffers[lane].tolist())
    assert not torch.equal(rows, lanes.buffers)


def test_a_state_is_a_copy():
    """Against a later round: what a checkpoint took does not change under it."""
    lanes = Lanes(**arguments())
    state = lanes.state()
    before = {name: value.clone() for name, value in state.items()}
    lanes.draw(8)
    assert all(torch.equal(state[name], value) for name, value in before.items())
    assert state["rounds"].tolist() == [0] * 4 and lanes.rounds.tolist() == [2] * 4


@pytest.mark.parametrize("lanes_total", [1, 7, 64])
def test_every_lane_has_one_owner(lanes_total):
    """Against the definition: contiguous shares in rank order that differ by one at most and cover all lanes."""
    for world_size in range(1, lanes_total + 1):
        shares = [owned_lanes(lanes_total, rank, world_size) for rank in range(world_size)]
        assert [lane for share in shares for lane in share] == list(range(lanes_total))
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


def test_sampled_lines_show_rows_and_their_variety():
    """Against rows of known text: printable ASCII as it is, others as a dot; a heading a round; true counts."""
    assert printable(torch.tensor([[72, 105, 32, 0, 255, 126, 127]], dtype=torch.uint8)) == ["Hi ··~·"]
    lanes, same = Lanes(**arguments()), Lanes(**arguments())
    lines = list(sample_lines(lanes, rounds=2, rows=3))
    assert [line for line in lines if line.startswith("lane")] == ["lane 0, round 1", "lane 0, round 2"]
    rows = same.draw(3)[:3]
    expected = [(str(len(row.unique())), text) for row, text in zip(rows, printable(rows), strict=True)]
    assert [re.fullmatch(r" *(\d+) distinct  (.*)", line).groups() for line in lines[1:4]] == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(lanes=[]), "lanes is .*; allowed: at least one"),
        (dict(lanes=[1, 1]), "allowed: each lane once"),
        (dict(context=0), "context is 0; allowed: 1 or more"),
        (dict(vocabulary=32769), "vocabulary is 32769; allowed: 1 to 32768"),
        (dict(draw=25), "draw is 25; allowed: 1 to buffer_rows"),
        (dict(enrich_rows=25), "enrich_rows is 25; allowed: 1 to buffer_rows"),
        (dict(reset_noise=-0.1), "reset_noise -0.1; allowed: 0 or more"),
        (dict(reset_constant=0.6, reset_noise=0.5), "reset_constant is 0.6 .*; allowed: shares"),
        (dict(sources=[]), "there are 0 sources; allowed"),
        (dict(sources=[(Depth(), 0.0)]), "weights sum to 0; allowed: a positive sum"),
        (dict(sources=[(Depth(), -1.0)]), "weight is -1.0; allowed: 0 or more"),
        (dict(sources=[(Depth(30), 1.0)]), "seed has 30 tokens; allowed: at most a row's .21."),
        (dict(seed=-1), "seed is -1; allowed"),
    ],
)
def test_mistakes_are_named(changes, words):
    """Against the message: what was given and what is allowed."""
    with pytest.raises(ValueError, match=words):
        Lanes(**arguments(**changes))


def test_wrong_worlds_draws_and_states_are_named():
    """Against the message, for more ranks than lanes, a rank outside, no rows, and another configuration's state."""
    with pytest.raises(ValueError, match="world size 9 with 8 lanes; allowed: 1 to 8 ranks"):
        owned_lanes(8, 0, 9)
    with pytest.raises(ValueError, match="rank is 2; allowed: 0 to 1"):
        owned_lanes(8, 2, 2)
    with pytest.raises(ValueError, match="rows_per_lane is 0; allowed"):
        Lanes(**arguments()).draw(0)
    with pytest.raises(ValueError, match=r"buffers are \(4, 24, 21\) .*; allowed: \(3, 24, 21\)"):
        Lanes(**arguments(lanes=range(3))).load_state(Lanes(**arguments()).state())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_any_world_gives_the_same_rows_on_a_gpu():
    """Against one rank with all eight lanes, on one GPU: bit for bit."""
    given = arguments(context=60, sources=mixture(), device="cuda")
    everything = Lanes(**{**given, "lanes": range(8)})
    ranks = [Lanes(**{**given, "lanes": owned_lanes(8, rank, 3)}) for rank in range(3)]
    for count in (4, 9):
        assert torch.equal(torch.cat([rank.draw(count) for rank in ranks]), everything.draw(count))


def test_tokens_that_are_no_targets_pass_through_a_buffer_and_a_sample():
    """Against a source whose every second token is none: int16 rows with complements; an LSTM beside it reads ids."""

    class Halves(Source):
        def write(self, stream, conditions, seeds):
            tokens = torch.full(conditions.shape, ord("a"))
            return read_only(tokens, torch.arange(conditions.shape[-1]).expand_as(tokens) % 2 == 0)

    reader = Depth()
    given = arguments(sources=[(Halves(), 1.0), (reader, 1.0)], reset_constant=0.0, reset_noise=0.0, masked=True)
    lanes = Lanes(**given)
    for _ in range(8):
        rows = lanes.draw(4)
    assert rows.dtype == torch.int16 and rows[lanes.origins() == 0].unique().tolist() == [~ord("a"), ord("a")]
    assert (rows[lanes.origins() == 1] >= 0).all()
    conditions = torch.cat([conditions.flatten() for conditions, _, _ in reader.given])
    assert conditions.dtype == torch.uint8 and (conditions == ord("a")).any()
    text = "\n".join(sample_lines(Lanes(**{**given, "sources": [(Halves(), 1.0)], "buffer_rows": 8}), 1, 2))
    assert "1 distinct  " + 21 * "a" + "\n      targets  " + 10 * " ^" in text
    with pytest.raises(RuntimeError, match="dtype"):
        Lanes(**{**given, "masked": False}).draw(4)
