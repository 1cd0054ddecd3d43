"""Statistics of rows, against closed forms and slow counting, and the command that shows them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from upscale import row_statistics
from upscale.config import files as config_files
from upscale.errors import UserError
from upscale.row_statistics import inputs
from upscale.row_statistics.measures import measure
from upscale.sources import KINDS

ROOT = Path(__file__).parents[2]


def test_noise_constants_and_cycles_measure_as_they_must():
    """Against closed forms: noise does not compress, a constant has no entropy, a cycle repeats from its start on."""
    noise = measure(np.random.default_rng(0).integers(0, 256, (64, 512)).astype(np.uint8))
    assert noise.gzip_ratio > 1 and 7.9 < noise.entropy_by_order[0] <= 8
    assert abs(noise.distinct_tokens - 256 * (1 - (1 - 1 / 256) ** 512)) < 3
    assert noise.markov_bits == pytest.approx(8, abs=0.1) and noise.mean_repeat < 2
    constant = measure(np.full((4, 512), 7, np.uint8))
    assert constant.entropy_by_order == (0, 0, 0, 0) and constant.row_entropy == 0 and constant.zipf_slope == 0
    assert constant.longest_repeat == 511 and constant.mean_repeat == 511 / 2 and constant.gzip_ratio < 0.03
    cycle = measure(np.tile(np.arange(8, dtype=np.uint8), (4, 64)))
    assert cycle.row_entropy == pytest.approx(3) and cycle.entropy_by_order[1] == pytest.approx(0, abs=0.01)
    assert cycle.longest_repeat == 504 and cycle.markov_bits < 0.01


def test_zipfs_law_has_its_slope():
    """Against rows whose frequencies are proportional to 1 / rank, in any vocabulary."""
    row = np.repeat(np.arange(60), [max(1, round(400 / rank)) for rank in range(1, 61)]).astype(np.int16) * 500
    found = measure(np.stack([np.random.default_rng(seed).permutation(row) for seed in range(4)]))
    assert found.zipf_slope == pytest.approx(-1, abs=0.02)


def test_repeats_and_entropies_are_those_of_slow_counting():
    """Against comparing every pair of places, and against counting grams in dictionaries."""
    rows = np.random.default_rng(1).integers(0, 3, (3, 40)).astype(np.uint8)
    found = measure(rows)
    lengths = []
    for row in rows.tolist():
        for end in range(1, 41):
            earlier = [row[start : start + size] for size in [1] for start in range(end - 1)]
            size = 0
            while any(row[end - size - 1 : end] == row[e - size - 1 : e] for e in range(size + 1, end)):
                size += 1
            assert bool(size) == (row[end - 1 : end] in earlier)
            lengths.append(size)
    assert found.mean_repeat == pytest.approx(np.mean(lengths))
    for order in range(4):
        grams: dict[tuple, int] = {}
        for row in rows.tolist():
            for start in range(40 - order):
                key = tuple(row[start : start + order + 1])
                grams[key] = grams.get(key, 0) + 1
        before: dict[tuple, int] = {}
        for key, count in grams.items():
            before[key[:-1]] = before.get(key[:-1], 0) + count
        total = sum(grams.values())
        bits = -sum(count / total * math.log2(count / before[key[:-1]]) for key, count in grams.items())
        assert found.entropy_by_order[order] == pytest.approx(bits)


def test_configs_texts_and_files_stand_side_by_side(tmp_path):
    """Against the table, the JSON and the picture: one line each, rows as long as the shortest config's."""
    (tmp_path / "notes.txt").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "small.yaml").write_text("data: {sources: [{kind: utm}], reset: {constant: 0, noise: 0}}")
    names = [str(tmp_path / "small.yaml"), "wp", str(tmp_path / "notes.txt")]
    rows = inputs.gather(names, ["model.context=100"], rounds=2)
    assert {name: each.shape for name, each in rows.items()} == {
        "small": (256, 101),
        "wp": (256, 101),
        names[2]: (256, 101),
    }
    table = row_statistics.write(rows, tmp_path / "out")
    assert [line.split()[0] for line in table.splitlines()[1:4]] == ["small", "wp", names[2]]
    content = json.loads((tmp_path / "out/statistics.json").read_text())
    assert content["wp"]["gzip_ratio"] < content[names[2]]["gzip_ratio"]
    assert (tmp_path / "out/statistics.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["nowhere"], "--stats nowhere: neither a config .*, nor a file, nor one of champ"),
        (["wp", "wp"], "two things called wp"),
        (["german"], "--stats german: no excerpt of german"),
        (["pyproject.toml", "LICENSE.short"], "LICENSE.short: neither"),
    ],
)
def test_mistakes_are_named(names, words):
    with pytest.raises(UserError, match=words):
        inputs.gather(names, [], rounds=1)


def test_committed_statistics_are_of_every_kind_of_source():
    """Against the kinds that there are; what is named like a shipped config was measured of it."""
    shipped = {path.stem: path for path in (ROOT / "configs/ablations").glob("*.yaml")}
    files = [ROOT / "docs/statistics" / folder / "statistics.json" for folder in ("", "formal")]
    names = {name for file in files for name in json.loads(file.read_text())}
    configs = [config_files.load(shipped[name]) for name in names & set(shipped)]
    assert {source.kind for config in configs for source in config.data.sources} == set(KINDS)


def test_a_name_that_is_nothing_is_told_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(inputs, "_of_config", lambda *_: pytest.fail("measured"))
    with pytest.raises(UserError, match=r"model.context=512: neither a config .*; overrides stand before --stats"):
        inputs.gather(["configs/ablations/lstm.yaml", "model.context=512"], [], rounds=1)
