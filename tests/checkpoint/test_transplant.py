"""Weights that are changed before a run begins with them, against what is written out tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests import tiny
from tests.engines import common
from tests.ranks import run_ranks
from upscale import engines
from upscale.checkpoint import export, transplant, warm_start
from upscale.config import Config
from upscale.config import files as config_files
from upscale.distributed.world import World
from upscale.engines import Fragment
from upscale.errors import UserError
from upscale.model import parametrization
from upscale.model.parametrization import part_of

AWAKE = {"schedule__wake_every": 0}


def weights(config: Config) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in parametrization.build(config).named_parameters()}


def exported(path: Path, **changes: object) -> dict[str, torch.Tensor]:
    """Write what `upscale export` would of a model with random weights; returns them."""
    config = tiny.config(**changes)
    metadata = {
        "format": export.FORMAT,
        "config": json.dumps(config_files.as_tree(config)),
        "output_multiplier": repr(parametrization.output_multiplier(config.model, config.mup)),
        "step": "12",
        "instances": "144",
    }
    # Gains and biases that are no constants, so that it shows what becomes of them.
    found = {
        name: weight + torch.linspace(0, 1, weight.numel()).view(weight.shape)
        for name, weight in weights(config).items()
    }
    save_file(found, path, metadata)
    return found


class Pieces:
    """An engine whose parameters are in two pieces each, cut at a third."""

    def __init__(self, config: Config):
        self.shapes = parametrization.shapes(config)
        self.flat = {name: torch.full((shape.numel(),), torch.nan) for name, shape in self.shapes.items()}

    def fragments(self) -> Iterable[Fragment]:
        for name, flat in self.flat.items():
            cut = len(flat) // 3
            yield Fragment(name, cut, {"weight": flat[cut:]})
            if cut:
                yield Fragment(name, 0, {"weight": flat[:cut]})

    def loaded(self, steps: None) -> None:
        assert steps is None


def begun(source: Path, **changes: object) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The whole weights that a run of this config begins with, and what it says."""
    config = tiny.config(**{**AWAKE, "init__from": source, "run__seed": 5, **changes})
    engine = Pieces(config)
    notes = warm_start.wanted(config).load(config, engine, World.single())
    return {name: flat.view(engine.shapes[name]) for name, flat in engine.flat.items()}, notes


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    path = tmp_path_factory.mktemp("transplant") / "a.safetensors"
    return path, exported(path)


def test_rows_of_tokens_and_positions(source):
    """300 tokens where there were 256, 12 positions where there were 16."""
    path, old = source
    new = {"model__vocabulary": 300, "model__context": 12, "init__rows__positions": "first"}
    found, _ = begun(path, **new, init__rows__embeddings="matched", init__rows__head="mean")
    table, mean = old["token_embedding.weight"], old["token_embedding.weight"].mean(0)
    assert torch.equal(found["token_embedding.weight"][:256], table)
    assert torch.allclose(found["token_embedding.weight"][256:], mean.expand(44, -1))
    assert torch.equal(found["position_embedding.weight"], old["position_embedding.weight"][:12])
    for name in ("head.weight", "head.bias"):
        assert torch.allclose(found[name], old[name].mean(0, keepdim=True).expand(found[name].shape)), name
    assert len(found["head.weight"]) == len(found["head.bias"]) == 300
    body = [name for name in old if part_of(name) not in ("embeddings", "head")]
    assert body and all(torch.equal(found[name], old[name]) for name in body)


def test_sampled_rows_are_old_ones_and_the_head_draws_as_the_embedding(source):
    path, old = source
    found, notes = begun(path, init__rows__embeddings="sampled", init__rows__head="sampled")
    places = []
    for name in ("token_embedding.weight", "head.weight"):
        equal = (found[name][:, None] == old[name][None]).all(-1)
        assert equal.any(1).all(), name
        places.append(equal.long().argmax(1))
    assert torch.equal(*places)
    # With replacement: of 256 draws about 1 - 1/e of the rows are met, 162 with a deviation of 5.
    assert 135 < len(places[0].unique()) < 190
    assert "rows of embeddings sampled; rows of head sampled" in notes[-1]
    other, _ = begun(path, init__rows__embeddings="sampled", run__seed=6)
    assert not torch.equal(other["token_embedding.weight"], found["token_embedding.weight"])


def test_controls_keep_the_numbers_or_their_mean_and_deviation(source):
    """Shuffled: the same numbers of each tensor, hardly one in its place. Gaussian: new ones with the same norm."""
    path, old = source
    shuffled, _ = begun(path, init__control="shuffled")
    gaussian, notes = begun(path, init__control="gaussian")
    assert "each tensor gaussian" in notes[-1]
    for name, weight in old.items():
        assert torch.equal(shuffled[name].flatten().sort().values, weight.flatten().sort().values), name
        made = gaussian[name]
        assert made.double().mean().item() == pytest.approx(weight.double().mean().item(), abs=1e-6), name
        assert made.norm().item() == pytest.approx(weight.norm().item(), rel=1e-5), name
        if weight.numel() > 100:
            assert (shuffled[name] == weight).float().mean() < 0.1, name
            assert abs(torch.corrcoef(torch.stack([made.flatten(), weight.flatten()]))[0, 1]) < 0.5, name
    kept, _ = begun(path, init__control="shuffled", init__reinitialize="[ff]")
    fresh = weights(tiny.config(run__seed=5))
    for name in old:
        assert torch.equal(kept[name], (fresh if part_of(name) == "ff" else shuffled)[name]), name


def test_parts_are_mixed_from_other_files(source, tmp_path):
    path, old = source
    other = exported(tmp_path / "b.safetensors", run__seed=9, model__vocabulary=128)
    found, notes = begun(path, init__mix=f"{{ff: {tmp_path / 'b.safetensors'}}}", init__reinitialize="[norms]")
    fresh = weights(tiny.config(run__seed=5))
    for name in old:
        expected = {"ff": other, "norms": fresh}.get(part_of(name), old)[name]
        assert torch.equal(found[name], expected), name
    assert notes[0].startswith("ff: weights taken from") and notes[-1].endswith("; fresh: norms")
    with pytest.raises(UserError, match=r"init.mix.head: the weights .* do not fit.*\n.*model.vocabulary: there 128"):
        begun(path, init__mix=f"{{head: {tmp_path / 'b.safetensors'}}}")
    with pytest.raises(UserError, match=r"init.mix.ff: init.from: there is no nowhere"):
        begun(path, init__mix="{ff: nowhere}")


ENGINES = {
    "stage 1": {"engine__zero_stage": 1},
    "stage 3": {"engine__zero_stage": 3},
    "fsdp": {"engine__name": "fsdp"},
}
PROTOCOLS = {
    "attention alone": {"init__reinitialize": "[embeddings, head, ff, norms, gates]"},
    "ff alone, mean rows": {
        "init__reinitialize": "[attention, norms, gates]",
        "init__rows__embeddings": "mean",
        "init__rows__head": "mean",
    },
    "all, other tokens, fewer positions": {
        "model__vocabulary": 300,
        "model__context": 12,
        "init__rows": "{embeddings: matched, head: sampled, positions: first}",
    },
    "sampled rows": {"init__rows__embeddings": "sampled", "init__rows__head": "sampled"},
    "shuffled": {"init__control": "shuffled"},
    "gaussian, mixed": {"init__control": "gaussian", "init__mix": "{ff: OTHER}"},
}


def begun_on_ranks(world: World, source: Path, protocols: dict[str, dict]) -> dict[tuple[str, str], dict]:
    """The weights that this rank holds as a run begins, by protocol and engine."""
    found = {}
    for name, changes in protocols.items():
        for label, kind in ENGINES.items():
            config = tiny.config(**{**AWAKE, "init__from": source, "run__seed": 5, **changes, **kind})
            engine = engines.create(config, parametrization.build(config, "meta"), world)
            warm_start.wanted(config).load(config, engine, world)
            found[name, label] = {"end": common.copies(engine, "")}
            engine.close()
    return found


def test_two_ranks_begin_with_the_weights_of_one(source, tmp_path):
    """Bit for bit, under ZeRO 1 and 3 and FSDP2, against one rank that holds every parameter whole."""
    exported(tmp_path / "b.safetensors", run__seed=9)
    other = str(tmp_path / "b.safetensors")
    protocols = {
        name: {key: str(value).replace("OTHER", other) for key, value in changes.items()}
        for name, changes in PROTOCOLS.items()
    }
    results = run_ranks(begun_on_ranks, 2, source[0], protocols)
    for name, changes in protocols.items():
        expected, _ = begun(source[0], **changes)
        for label in ENGINES:
            sizes = {key: value for key, value in changes.items() if key.startswith("model__")}
            weights = common.whole([rank[name, label] for rank in results], "weight", **sizes)
            assert weights.keys() == expected.keys()
            for parameter, weight in expected.items():
                assert torch.equal(weights[parameter], weight.view(-1)), (name, label, parameter)
        assert any(not torch.equal(weight, source[1][key]) for key, weight in expected.items()), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__vocabulary": 300}, r"or init.rows=\{embeddings: matched, head: matched\}"),
        ({"model__vocabulary": 300, "init__rows__head": "mean"}, r"model.vocabulary: there 256, here 300"),
        ({"model__context": 8}, r"or init.rows.positions=first"),
        ({"model__context": 20, "init__rows__positions": "first"}, r"model.context: there 16, here 20"),
    ],
)
def test_rows_that_do_not_fit_are_refused(source, changes, message):
    with pytest.raises(UserError, match=message):
        begun(source[0], **changes)


def test_a_block_without_learned_positions_takes_any_context(tmp_path):
    exported(tmp_path / "llama.safetensors", model__block="llama")
    found, _ = begun(tmp_path / "llama.safetensors", model__block="llama", model__context=64)
    assert not any(torch.isnan(weight).any() for weight in found.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init__rows__head": "mean"}, "init.rows: without init.from there are no rows"),
        ({"init__control": "shuffled"}, "init.control: without init.from there are no weights"),
        ({"init__mix": "{ff: x}"}, "init.mix: without init.from there is nothing to mix with"),
        ({"init__from": "x", "init__mix": "{fff: x}"}, "init.mix.fff: unknown key; did you mean ff? allowed: "),
        ({"init__from": "x", "init__mix": "{ff: x}", "init__reinitialize": "[ff]"}, "ff is in init.reinitialize too"),
        (
            {"init__from": "x", "init__rows__embeddings": "mean", "init__reinitialize": "[embeddings]"},
            "init.rows.embeddings: mean, but embeddings is in init.reinitialize",
        ),
        (
            {"schedule__decay": "{over: 121}"},
            "schedule.decay.over: 121 is more than the 120 instances after the warm-up",
        ),
        ({"schedule__decay": "{}", "schedule__warmup": 144}, "the warm-up of 144 instances leaves none of 144"),
        ({"data__control": "pair"}, "data.control"),
    ],
)
def test_what_a_config_may_not_say(changes, message):
    with pytest.raises(UserError) as raised:
        tiny.config(**changes)
    assert message in str(raised.value)


def test_a_norm_is_kept_by_a_tensor_of_one_number():
    assert transplant.with_moments(torch.tensor([3.0]), torch.tensor([0.25])).tolist() == [0.25]
