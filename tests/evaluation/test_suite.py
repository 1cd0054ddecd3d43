"""The suite against its contract: names, records, baselines on the model's own slices, agreement between ranks."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from tests.ranks import run_ranks
from upscale.distributed.world import World
from upscale.errors import UserError
from upscale.evaluation import NAMES, Dataset, EvaluationError, check_names, datasets, evaluate, suite
from upscale.evaluation.compression import target_positions
from upscale.evaluation.markov import in_context

SINGLE = World.single()
FIELDS = [
    "task", "split", "bits_per_character", "standard_error", "markov_bits_per_character", "markov_order",
    "markov_published_bits_per_character", "markov_published_order", "optimal_bits_per_character", "samples",
    "group_bits_per_character", "digest", "skipped",
]  # fmt: skip


def uniform(tokens: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(tokens), 256)


def run(chosen, predict=uniform, **settings):
    settings = {"slices": 50, "context": 64, "world": SINGLE, "batch_rows": 32} | settings
    return evaluate(predict, chosen, **settings)


def test_names():
    """Against the contract: "all" is every task and text; an unknown name gives its nearest and the allowed ones."""
    assert check_names("all") == check_names(["all"]) == list(NAMES)
    assert set(NAMES) == {
        "champ", "champ_decimal", "dyck", "ndfa", "aut", "toy", "toy2", "bits", "bitsflip", "bitsrep",
        "wp", "german", "code", "linux", "text",
    }  # fmt: skip
    assert check_names(["wp", "dyck", "wp"]) == ["wp", "dyck"]
    assert check_names("wp") == ["wp"]
    with pytest.raises(
        ValueError, match=r"'dick' \(did you mean 'dyck'\?\), 'qqq'; allowed are all, champ,.*linux"
    ) as caught:
        check_names(["dick", "wp", "qqq"])
    assert isinstance(caught.value, UserError)
    with pytest.raises(EvaluationError, match="empty"):
        check_names([])


def test_datasets_of_every_name(tmp_path):
    """Against the contract: tasks are generated with their optimum, texts name their split, german is skipped."""
    (tmp_path / "linux.test").write_bytes(b"int main(void) { return 0; }" * 10)
    chosen = datasets("all", data_dir=tmp_path, characters=2000)
    assert [dataset.name for dataset in chosen] == list(NAMES)
    by_name = {dataset.name: dataset for dataset in chosen}
    for dataset in chosen[:10]:
        assert (dataset.kind, dataset.split, dataset.skipped) == ("task", "generated", None)
        assert 2000 <= len(dataset.data) < 4000 and 0 < dataset.optimal_bits_per_character < 1.4
    assert [by_name[name].split for name in ("wp", "code", "linux", "german")] == [
        "excerpt",
        "excerpt",
        "data_dir",
        None,
    ]
    assert by_name["german"].skipped
    assert datasets(["toy"], characters=2000, seed=0) == [by_name["toy"]] != datasets(["toy"], characters=2000, seed=1)


def test_records(tmp_path):
    """Against the contract's fields; JSON can hold them; a skipped or too short text has null numbers and a reason."""
    (tmp_path / "wp").write_bytes(b"short")
    seen = []
    chosen = datasets(["bits", "german", "wp", "linux"], data_dir=tmp_path, characters=3000)
    records = run(chosen, progress=lambda *given: seen.append(given))
    assert all(list(record) == FIELDS for record in records)
    assert json.loads(json.dumps(records, allow_nan=False)) == records
    bits, german, wp, linux = records
    assert (bits["bits_per_character"], bits["standard_error"], bits["samples"]) == (8.0, 0.0, 50)
    assert (bits["split"], bits["optimal_bits_per_character"], bits["skipped"]) == ("generated", 10 / 31, None)
    assert (linux["split"], linux["optimal_bits_per_character"], linux["samples"]) == ("excerpt", None, 50)
    for record, split in ((german, None), (wp, "data_dir")):
        assert record["split"] == split and record["skipped"]
        assert [record[field] for field in FIELDS[2:10]] == [None] * 8
    assert wp["skipped"] == "only 5 characters: a slice needs 64"
    assert [given[2] for given in seen] == [
        "Markov baseline of bits",
        "Markov baseline of linux",
        "bits",
        "bits",
        "linux",
        "linux",
    ]
    assert all(1 <= done <= total for done, total, _ in seen)


def test_baselines_are_on_the_models_own_slices():
    """Against the Markov baseline computed directly on the same targets; it is computed once a process."""
    (dataset,) = datasets(["dyck"], characters=4000)
    positions = target_positions(len(dataset.data), context=64, slices=50, seed=7)
    expected = in_context(dataset.data, positions, context=64)
    before = suite._baseline.cache_info()
    (record,) = run([dataset], seed=7)
    assert record["markov_bits_per_character"] == expected.corrected.bits_per_character
    assert record["markov_order"] == expected.corrected.order
    assert record["markov_published_bits_per_character"] == expected.published.bits_per_character
    assert record["markov_published_order"] == expected.published.order
    (again,) = run(datasets(["dyck"], characters=4000), seed=7)
    after = suite._baseline.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 1)
    assert again == record


def test_more_slices_than_positions():
    """Against the contract: all positions are used and samples says how many."""
    (dataset,) = datasets(["bitsrep"], characters=300)
    (record,) = run([dataset], slices=10_000)
    assert record["samples"] == len(dataset.data) - 63


def test_diverged_model_is_null_not_an_error():
    """Against the metrics file's rule: a number that is not finite is null, and the baseline stays."""
    (record,) = run(datasets(["dyck"], characters=1000), lambda tokens: torch.full((len(tokens), 256), math.nan))
    assert record["bits_per_character"] is None and record["standard_error"] is None and record["skipped"] is None
    assert record["markov_bits_per_character"] > 0


def test_settings_are_checked():
    """Against the contract: numbers that cannot work are named, also when nothing is left to measure."""
    for name, value in (("slices", 0), ("context", 1), ("batch_rows", 0)):
        with pytest.raises(EvaluationError, match=f"{name} is {value}, it must be at least"):
            run(datasets(["dyck"], characters=1000), **{name: value})
    assert run(datasets(["german"]))[0]["skipped"]
    assert run([]) == []
    with pytest.raises(ValueError, match="uint8"):
        Dataset("x", "task", np.zeros(3), "generated")


def whole(world: World, disagree: bool) -> tuple:
    """One evaluation on one rank: the records and how many baselines this rank computed itself."""
    chosen = datasets(["dyck", "german", "aut", "toy"], characters=2000 + 1000 * (disagree and world.rank == 1))
    try:
        return run(chosen, world=world, slices=40), suite._baseline.cache_info().misses
    except EvaluationError as error:
        return str(error), 0


def test_ranks_give_the_records_of_one():
    """Two real gloo ranks against one process: equal records, the three baselines split two and one."""
    expected = run(datasets(["dyck", "german", "aut", "toy"], characters=2000), slices=40)
    (first, first_baselines), (second, second_baselines) = run_ranks(whole, 2, False, timeout_seconds=90)
    assert first == second
    assert (first_baselines, second_baselines) == (2, 1)
    for record, single in zip(first, expected, strict=True):
        rounding = {"bits_per_character", "standard_error"} if single["skipped"] is None else set()
        assert all(record[field] == pytest.approx(single[field], rel=1e-12) for field in rounding)
        assert all(record[field] == single[field] for field in FIELDS if field not in rounding)


def test_ranks_with_other_data_fail_together():
    """Against a hang: ranks that were given different strings all raise, naming the rank and the setting."""
    for message, _ in run_ranks(whole, 2, True, timeout_seconds=90):
        assert "rank 1 was given other datasets" in message and "evaluation.data_dir" in message
