"""Fine-tuning as users start it, against a plain single-process trainer, and every weight that does not fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import upscale
from tests import tiny
from tests.corpora.small import corpus
from tests.engines import common
from tests.ranks import run_ranks
from tests.reference.training import PlainTrainer
from tests.test_train import as_srun_would, command, losses, metrics, train
from upscale import engines
from upscale.checkpoint import export, run_directory, warm_start
from upscale.checkpoint.export import load_model
from upscale.data import training_rows
from upscale.distributed.world import World
from upscale.errors import UserError
from upscale.evaluation.tasks import TEXTS
from upscale.model import parametrization

AWAKE = "schedule.wake_every=0"
OPTIONS = {
    "optimizer__freeze": "[embeddings, norms]",
    "optimizer__layer_decay": 0.8,
    "optimizer__z_loss": 0.01,
    "data__first_target": 5,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A pre-trained run of twelve steps, its export, and a small corpus of real text."""
    place = tmp_path_factory.mktemp("finetune")
    train(place / "pretrained", "checkpoint.every_steps=6")
    run = place / "pretrained"
    export.export(run, run_directory.read_config(run), None, place / "weights.safetensors")
    content = TEXTS["wp"].load().data.tobytes()[:6000]
    corpus(place / "wp", content, {"train": 5000, "validation": 500, "test": 500})
    return place


def changes(folder: Path, **more: object) -> dict:
    return {
        "data__kind": "corpus",
        "data__corpora": f"[{{path: {folder / 'wp'}}}]",
        "schedule__wake_every": 0,
        "init__from": folder / "weights.safetensors",
        "run__seed": 7,
        **more,
    }


def typed(**changes: object) -> list[str]:
    return [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]


@pytest.fixture(scope="module")
def tuned(folder) -> Path:
    train(folder / "tuned", *typed(**changes(folder, **OPTIONS)))
    return folder / "tuned"


def test_fine_tuning_equals_a_plain_trainer(folder, tuned):
    """Rows, weights, frozen parts, layer-wise rates, z-loss, first target: against tests/reference/training.py."""
    config = tiny.config(**changes(folder, **OPTIONS))
    plain = PlainTrainer(config)
    plain.model.load_state_dict(upscale.load(folder / "weights.safetensors").state_dict())
    rows = training_rows.open_rows(config)(range(12), "cpu")
    expected = [plain.step(rows.draw(1), 12 * step) / torch.tensor(2.0).log().item() for step in range(12)]
    assert losses(tuned) == pytest.approx(expected, rel=1e-6)
    assert {record["active_blocks"] for record in metrics(tuned)} == {6}
    frozen, moved = load_weights(tuned), upscale.load(folder / "weights.safetensors").state_dict()
    for name, weight in frozen.items():
        is_frozen = parametrization.part_of(name) in ("embeddings", "norms")
        assert torch.equal(weight, moved[name]) == is_frozen, name


def load_weights(run: Path) -> dict[str, torch.Tensor]:
    model, _ = load_model(run, run_directory.read_config(run), None, World.single())
    return dict(model.state_dict())


@pytest.mark.parametrize(("ranks", "engine"), [(2, "engine.zero_stage=3"), (3, "engine.name=fsdp")])
def test_any_world_and_engine_gives_the_same_losses(folder, tuned, tmp_path, ranks, engine):
    """From the run directory where the run on one rank took the exported file; seven and eight rows of 12 uneven."""
    extra = typed(**changes(folder, init__from=folder / "pretrained", **OPTIONS))
    output = as_srun_would(ranks, command(tmp_path / "run", *extra, engine))[0]
    assert "weights taken from" in output and "step-00000012" in output
    assert losses(tmp_path / "run") == pytest.approx(losses(tuned), rel=1e-5)


def test_a_resumed_fine_tuning_is_bit_equal_and_looks_at_its_origin_no_more(folder, tuned, tmp_path):
    """Five steps, then the rest with the corpus in another folder and the weights gone."""
    shutil.copytree(folder / "wp", tmp_path / "wp")
    shutil.copy(folder / "weights.safetensors", tmp_path)
    train(tmp_path / "run", *typed(**changes(tmp_path, **OPTIONS)), "run.steps=5")
    (tmp_path / "weights.safetensors").unlink()
    (tmp_path / "wp").rename(tmp_path / "moved")
    moved = f"data.corpora=[{{path: {tmp_path / 'moved'}}}]"
    train(tmp_path / "run", *typed(**changes(tmp_path, **OPTIONS)), moved)
    assert losses(tmp_path / "run") == losses(tuned)


def initialized(world: World, kinds: dict[str, dict]) -> dict[str, dict]:
    """For each kind of engine: every fragment's weight as it begins, and after two steps of the trainer's rows."""
    found = {}
    for label, kind in kinds.items():
        config = common.config(**kind)
        model = parametrization.build(config)
        engine = engines.create(config, model, world)
        warm_start.wanted(config).load(config, engine, world)
        begin = common.copies(engine, "")
        mine = common.global_rows(0).tensor_split(world.size)[world.rank]
        for step in range(2):
            common.train_step(engine, world, config, mine, step * common.BATCH)
        found[label] = {"begin": {"end": begin}, "end": {"end": common.copies(engine, "")}}
    return found


def test_reinitialized_and_frozen_parts_at_every_engine_and_stage(folder):
    """Against a fresh model for the former, and the exported weights for all others; frozen parts stay bit-equal."""
    kind = {
        "init__from": folder / "pretrained",
        "init__reinitialize": "[attention, head]",
        "optimizer__freeze": "[ff, head]",
        "schedule__wake_every": 0,
    }
    kinds = {f"stage {stage}": {**kind, "engine__zero_stage": stage} for stage in range(4)}
    kinds["fsdp"] = {**kind, "engine__name": "fsdp"}
    fresh = dict(parametrization.build(common.config(**kind)).named_parameters())
    taken = upscale.load(folder / "weights.safetensors").state_dict()
    results = run_ranks(initialized, 2, kinds, timeout_seconds=400)
    for label in kinds:
        begin, end = (common.whole([rank[label][when] for rank in results], "weight") for when in ("begin", "end"))
        for name in fresh:
            part = parametrization.part_of(name)
            expected = (fresh if part in ("attention", "head") else taken)[name].detach().view(-1)
            assert torch.equal(begin[name], expected), f"{label} {name}"
            assert torch.equal(end[name], begin[name]) == (part in ("ff", "head")), f"{label} {name}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__width": 64}, r"model.width: there 32, here 64: set model.width=32"),
        ({"model__depth": 5, "model__heads": 4}, r"(?s)model.depth: there 6, here 5.*model.heads: there 2, here 4"),
        ({"model__vocabulary": 128}, r"vocabulary: there 256, here 128: .* or init.reinitialize=\[embeddings, head\]"),
        ({"model__context": 8}, r"model.context: there 16, here 8: .* or init.reinitialize=\[embeddings\]"),
        ({"model__qk_norm": "true"}, r"model.qk_norm: there False, here True: set model.qk_norm=false, or"),
        ({"model__block": "llama"}, r"model.block: there paper, here llama: set model.block=paper$"),
        ({"mup__base_width": 32}, r"mup.base_width: there 64, here 32"),
        ({"init__step": 7}, r"has no step 7; it has 6, 12.*Only milestones"),
        ({"init__from": "nowhere"}, r"there is no nowhere"),
        ({"run__dir": "{folder}/copy", "init__from": "{folder}/copy"}, r"is this run's own directory"),
        ({"init__from": "{folder}/wp"}, r"is not a run directory: it has no config.yaml"),
        ({"init__from": "{folder}/begun"}, r"has no checkpoint yet. If it is still training, wait"),
        ({"init__from": "{folder}/wp/index.json"}, r"is not a safetensors file"),
        ({"init__from": "{folder}/foreign.safetensors"}, r"was not written by `upscale export`"),
        (
            {"init__from": "{folder}/weights.safetensors", "init__step": 6},
            r"init.step = 6, but the file .* holds step 12",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder, change, message):
    begun, copy = folder / "begun", folder / "copy"
    for place in (begun, copy):
        place.mkdir(exist_ok=True)
        shutil.copy(folder / "pretrained/config.yaml", place)
    (copy / "checkpoints").mkdir(exist_ok=True)
    parameters = next((folder / "pretrained/checkpoints/step-00000012").glob("parameters*"))
    shutil.copy(parameters, folder / "foreign.safetensors")
    given = {key: str(value).format(folder=folder) for key, value in change.items()}
    with pytest.raises(UserError, match=message):
        warm_start.wanted(tiny.config(**{"init__from": folder / "pretrained", "schedule__wake_every": 0, **given}))


def test_another_vocabulary_and_context_fit_when_their_parts_are_fresh(folder):
    config = tiny.config(
        init__from=folder / "pretrained",
        model__vocabulary=128,
        model__context=8,
        init__reinitialize="[embeddings, head]",
        schedule__wake_every=0,
    )
    assert warm_start.wanted(config)


def test_mistakes_exit_2_before_a_run_directory_is_made(folder, tmp_path):
    for extra in (["model.width=64", AWAKE], []):
        output = train(tmp_path / "run", f"init.from={folder / 'pretrained'}", *extra, expect=2)
        assert ("do not fit" if extra else "Set schedule.wake_every=0") in output and "Traceback" not in output
        assert extra == [] or not (tmp_path / "run").exists()
    output = train(tmp_path / "run", "data.kind=corpus", f"data.corpora=[{{path: {tmp_path}}}]", expect=2)
    assert "is not a prepared corpus" in output and "Traceback" not in output


def test_a_run_that_still_trains_gives_its_newest_valid_weights_with_a_warning(folder, tmp_path):
    """Step 12 damaged as if it were being written, and a schedule that goes on: step 6 is taken, and said."""
    shutil.copytree(folder / "pretrained", tmp_path / "source")
    (tmp_path / "source/checkpoints/step-00000012/manifest.json").unlink()
    output = train(tmp_path / "run", f"init.from={tmp_path / 'source'}", AWAKE, "run.steps=1")
    assert "step-00000006, 72 instances" in output and "checkpoint of step 12 cannot be used" in output
    assert "has not finished, or is still training" in output and "init.step=6" in output
