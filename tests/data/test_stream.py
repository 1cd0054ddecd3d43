"""`upscale.rows` against the rows that training draws: in any world, under DataLoader workers, resumed anywhere."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch.utils.data import DataLoader

import upscale
from tests import tiny
from tests.corpora.small import corpus, text
from upscale.corpora.shards.reading import Windows
from upscale.data.lanes import from_config
from upscale.data.stream import NO_TARGET
from upscale.errors import UserError
from upscale.sources.tokens import ids

LANES, DRAW, ROUNDS = 12, 2, 3
MIXTURE = "[{kind: automaton}, {kind: dyck, weight: 2}]"

pytestmark = pytest.mark.usefixtures("one_thread")


def config(**changes):
    return tiny.config(**{"data__sources": MIXTURE, "data__draw": DRAW, **changes})


def drawn(chosen, rounds=ROUNDS) -> torch.Tensor:
    """(lanes, rows, context + 1): what training draws, a round a step."""
    lanes = from_config(chosen, range(LANES), "cpu")
    return torch.cat([lanes.draw(DRAW).unflatten(0, (LANES, DRAW)) for _ in range(rounds)], 1)


@pytest.fixture(scope="module")
def reference() -> torch.Tensor:
    return drawn(config())


def tokens(rows, count) -> list[bytes]:
    given = iter(rows)
    return [next(given).to(torch.uint8).numpy().tobytes() for _ in range(count)]


def plain(rows: torch.Tensor) -> list[bytes]:
    return [row.numpy().tobytes() for row in rows]


def in_order(reference: torch.Tensor) -> list[bytes]:
    """Row k of lane l is row k L + l."""
    return plain(reference.transpose(0, 1).flatten(0, 1))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 12])
def test_a_rank_gives_its_lanes_rows_in_order(reference, size):
    """So that where ranks divide the lanes, the first rows of all are together the stream's first."""
    together, place = [], 0
    for rank in range(size):
        stream = upscale.rows(config(), rank=rank, world_size=size, form="tokens")
        count = len(stream.lanes)
        found = tokens(stream, count * DRAW * ROUNDS)
        assert found == in_order(reference[place : place + count])
        together += found[: LANES // size * 3]
        place += count
    if LANES % size == 0:
        assert sorted(together) == sorted(in_order(reference)[: 3 * LANES])


def test_any_row_is_a_place_to_resume(reference):
    """At every row of two rounds, by a state that went through pickle, and in the middle of another stream."""
    expected = in_order(reference)
    stream, other = (upscale.rows(config(), form="tokens") for _ in range(2))
    given = iter(stream)
    for place in range(2 * LANES * DRAW):
        if place % 5 == 0:
            other.load_state_dict(pickle.loads(pickle.dumps(stream.state_dict())))
            assert tokens(other, LANES) == expected[place : place + LANES]
        assert next(given).to(torch.uint8).numpy().tobytes() == expected[place]


@pytest.mark.parametrize("before, after", [(3, 2), (1, 5), (4, 1)])
def test_another_world_goes_on_with_every_lane(reference, before, after):
    """Every lane continues with the row after its last, though lanes were at different rows: those behind go first."""
    states, given, taken = [], {}, {}
    for rank in range(before):
        stream = upscale.rows(config(), rank=rank, world_size=before, form="tokens")
        tokens(stream, 6 + rank)
        states.append(stream.state_dict())
        for place, lane in enumerate(stream.lanes):
            given[lane] = (6 + rank - place - 1) // len(stream.lanes) + 1
            taken[lane] = given[lane] - DRAW * ((6 + rank) // (DRAW * len(stream.lanes)))
    for rank in range(after):
        stream = upscale.rows(config(), rank=rank, world_size=after, form="tokens")
        stream.load_state_dict(states[::-1])
        mine, expected = {lane: taken[lane] for lane in stream.lanes}, []
        while len(expected) < 2 * len(mine):
            lane = min(mine, key=lambda lane: mine[lane])
            if mine[lane] == DRAW:
                mine = dict.fromkeys(mine, 0)
                continue
            expected.append(reference[lane, given[lane]].numpy().tobytes())
            given[lane], mine[lane] = given[lane] + 1, mine[lane] + 1
        assert tokens(stream, len(expected)) == expected


def test_workers_of_a_dataloader_divide_the_lanes(reference):
    """Two workers, batches of six: the first rows of all lanes, and no row twice."""
    loader = DataLoader(upscale.rows(config(), form="tokens"), batch_size=6, num_workers=2)
    batches = [batch for _, batch in zip(range(4), loader, strict=False)]
    assert [batch.shape for batch in batches] == [(6, 17)] * 4
    assert sorted(plain(torch.cat(batches).to(torch.uint8))) == sorted(in_order(reference)[: 2 * LANES])


def test_a_worker_goes_on_from_what_was_begun_before_it(reference):
    """The dataset was read, or given a state, in the process that starts the workers."""
    stream = upscale.rows(config(), form="tokens")
    tokens(stream, LANES)
    loaded = upscale.rows(config(), form="tokens")
    loaded.load_state_dict(stream.state_dict())
    copied = pickle.loads(pickle.dumps(stream))
    expected = sorted(in_order(reference)[LANES : 2 * LANES])
    for begun in (stream, loaded):
        found = torch.cat([batch for _, batch in zip(range(2), DataLoader(begun, 6, num_workers=2), strict=False)])
        assert sorted(plain(found.to(torch.uint8))) == expected
    assert sorted(tokens(copied, LANES)) == expected


def test_a_stateful_loader_resumes_exactly():
    """Against the loader that was not stopped, with two workers; torchdata's, which torchtitan uses."""
    loading = pytest.importorskip("torchdata.stateful_dataloader", reason="needs torchdata")

    def loader():
        return loading.StatefulDataLoader(upscale.rows(config()), batch_size=4, num_workers=2)

    whole = loader()
    batches = []
    for number, batch in enumerate(whole):
        batches.append(batch)
        if number == 4:
            state = pickle.loads(pickle.dumps(whole.state_dict()))
        if number == 9:
            break
    again = loader()
    again.load_state_dict(state)
    for (inputs, targets), expected in zip(again, batches[5:], strict=False):
        assert torch.equal(inputs, expected[0]) and torch.equal(targets, expected[1])


def test_forms_of_rows_that_choose_their_targets():
    """Against the rows themselves, in which a token that is no target is the complement of its id."""
    sources = "[{kind: lists, task: sort, items: 4, loss: answer}, {kind: uniform}]"
    chosen = config(data__sources=sources, data__buffer=1)
    raw = drawn(chosen, 1).transpose(0, 1).flatten(0, 1)
    pairs, labels, made = (
        iter(upscale.rows(chosen, form=form)) for form in ("pairs", "labels", lambda *pair: torch.stack(pair))
    )
    assert (raw[:, 1:] < 0).any() and (raw[:, 1:] >= 0).any()
    for row in raw:
        (inputs, targets), both, stacked = next(pairs), next(labels), next(made)
        expected = torch.where(row < 0, NO_TARGET, row).long()
        assert torch.equal(inputs, ids(row[:-1]).long()) and torch.equal(targets, expected[1:])
        assert torch.equal(both["input_ids"], ids(row).long()) and torch.equal(both["labels"][1:], expected[1:])
        assert torch.equal(stacked, torch.stack([inputs, targets]))


def test_the_first_target_of_a_config_is_kept():
    inputs, targets = next(iter(upscale.rows(config(data__first_target=5))))
    assert (targets[:4] == NO_TARGET).all() and torch.equal(targets[4:-1], inputs[5:])


def test_rows_of_a_corpus(tmp_path):
    """Against the reader of windows: instance after instance; a state of other texts is refused."""
    corpus(tmp_path / "wp", text(1200), {"train": 900, "validation": 200, "test": 100})
    chosen = tiny.config(data__kind="corpus", data__corpora=f"[{{path: {tmp_path / 'wp'}}}]")
    stream = upscale.rows(chosen, form="tokens")
    found = tokens(pickle.loads(pickle.dumps(stream)), 30)
    assert found == plain(Windows.open([tmp_path / "wp"], context=16, seed=0).rows(torch.arange(30)))
    assert tokens(stream, 30) == found
    assert tokens(pickle.loads(pickle.dumps(stream)), 3) == tokens(stream, 3)


def test_what_may_be_given(tmp_path, reference):
    """A file, a config with overrides, and sources name the same rows."""
    overrides = tiny.overrides(data__draw=DRAW)
    sources = ["automaton", {"kind": "dyck", "weight": 2}]
    (tmp_path / "config.yaml").write_text(f"data: {{sources: {MIXTURE}}}")
    expected = in_order(reference)[:12]
    for given in (tmp_path / "config.yaml", str(tmp_path / "config.yaml"), sources, config().data.sources):
        assert tokens(upscale.rows(given, overrides, form="tokens"), 12) == expected
    assert tokens(upscale.rows(config(), ["run.seed=0"], form="tokens"), 12) == expected
    assert tokens(upscale.rows(config(), ["run.seed=1"], form="tokens"), 12) != expected
    alone = upscale.rows({"kind": "uniform"}, overrides)
    assert [source.kind for source in alone.config.data.sources] == ["uniform"]


def test_mistakes_are_told():
    with pytest.raises(UserError, match="data.lanes = 12; allowed: at least one lane for each"):
        upscale.rows(config(), world_size=13)
    with pytest.raises(UserError, match="number 2 of 2 ranks"):
        upscale.rows(config(), rank=2, world_size=2)
    with pytest.raises(UserError, match="form is 'pair'; allowed: pairs, labels, tokens"):
        upscale.rows(config(), form="pair")
    with pytest.raises(UserError, match="form is tokens, but these rows say which tokens are targets"):
        upscale.rows(config(data__first_target=2), form="tokens")
    with pytest.raises(UserError, match=r"data.sources\[0\].*lsmt"):
        upscale.rows(["lsmt"])
    with pytest.raises(UserError, match="model.widht"):
        upscale.rows(["lstm"], ["model.widht=3"])


def test_states_of_other_rows_are_refused():
    stream = upscale.rows(config())
    next(iter(stream))
    with pytest.raises(UserError, match="run.seed: there 0, here 1"):
        upscale.rows(config(run__seed=1)).load_state_dict(stream.state_dict())
    with pytest.raises(UserError, match="run.seed: there 0, here 2"):
        upscale.rows(config(run__seeds__rows=2)).load_state_dict(stream.state_dict())
    with pytest.raises(UserError, match=r"other rows:\n  run.seeds.order: there 0, here 3$"):
        upscale.rows(config(run__seeds__order=3)).load_state_dict(stream.state_dict())
    with pytest.raises(UserError, match="no state of `upscale.rows`"):
        stream.load_state_dict({"buffers": torch.zeros(1)})
    half = upscale.rows(config(), rank=0, world_size=2).state_dict()
    with pytest.raises(UserError, match="has no lane 6, 7, 8, 9, 10, 11: give the states of all processes"):
        stream.load_state_dict(half)
    other = {**upscale.rows(config(), rank=1, world_size=2).state_dict(), "method": "native"}
    with pytest.raises(UserError, match="computed in different ways: exact, native"):
        stream.load_state_dict([half, other])
    stream.load_state_dict({**stream.state_dict(), "method": "native"})
    with pytest.raises(UserError, match="computed by native, but here by exact"):
        next(iter(stream))
