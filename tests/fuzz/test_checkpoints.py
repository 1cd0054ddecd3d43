"""Manifests, checkpoints and exported files: a valid step, or one clear error; memory never by a number in a file."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny
from tests.fuzz import hostile
from upscale import files
from upscale.checkpoint import export, manager, manifest
from upscale.checkpoint.reader import Reader, whole_parameters
from upscale.checkpoint.warm_start import Initialization
from upscale.checkpoint.writer import Writer, snapshot
from upscale.cli import checkpoint as checkpoint_command
from upscale.config import files as config_files
from upscale.distributed.world import World
from upscale.engines import Fragment
from upscale.errors import UserError
from upscale.launch.slurm import followups
from upscale.model import parametrization
from upscale.training.spikes import rollbacks_in_a_row

ELEMENTS = 24
INVALID = (manifest.InvalidCheckpoint,)


@pytest.fixture(scope="module")
def step(tmp_path_factory) -> Path:
    """A step of one parameter with a state, and one lane."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    fragments = [Fragment("w", 0, {key: torch.arange(ELEMENTS, dtype=torch.float32) for key in ("weight", "exp_avg")})]
    content = {"counters": {"step": 1, "instances": 12, "wandb_id": "abc", "recent_losses": [1.5]}, "milestone": True}
    content["counters"] |= {"seconds": 2.5, "spikes": [{"step": 1, "first": 1, "action": "rollback"}]}
    content |= {
        "world_size": 1,
        "steps_taken": {"0": 1, "0/norms": 1},
        "rounds": {"0": 3},
        "methods": ["exact"],
        "config": {"schedule": {"instances": 24}, "optimizer": {"freeze": ["head"]}},
    }
    writer = Writer(folder, World.single(), 3, asynchronous=False)
    writer.save(snapshot(1, fragments, {"0": torch.zeros(2, 5, dtype=torch.uint8)}, content))
    assert writer.failure is None
    return manifest.step_folder(folder, 1)


def use(path: Path) -> None:
    """All that commands and a resume do with a step."""
    content = manifest.verify(path, World.single())
    reader = Reader(path, content)
    one, other = (torch.full((ELEMENTS,), begin) for begin in (0.5, -0.5))
    for target in (one, other):  # and what is read fills them whole: no number, not even NaN, tells that of one alone
        reader.load([Fragment("w", 0, {"weight": target})])
    assert torch.equal(one.view(torch.int32), other.view(torch.int32))
    reader.lane(0)
    counters = manager._counters(path, content)
    assert counters.seconds >= 0 and rollbacks_in_a_row(counters.spikes) >= 0
    assert manager._frozen_in_old(content) is not None and content["world_size"] > 0
    followups.due(path.parents[1])


@pytest.fixture(scope="module")
def copy(step, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("copy") / "checkpoints" / step.name
    shutil.copytree(step, path)
    return path


def plain(step: Path) -> dict:
    return {
        key: value for key, value in json.loads((step / manifest.MANIFEST).read_text()).items() if key != "checksum"
    }


@given(data=st.data())
def test_any_manifest_with_a_right_checksum(step, copy, data, capsys):
    """A checksum keeps damage out, not malice: anyone can compute it."""
    tree = data.draw(hostile.changed(plain(step)))
    tree = tree if isinstance(tree, dict) else {"tree": tree}
    (copy / manifest.MANIFEST).write_text(json.dumps({**tree, "checksum": files._checksum(tree, manifest.HASH)}))
    hostile.ends_well(use, copy, also=INVALID)
    for action in ("list", "verify"):
        hostile.ends_well(checkpoint_command.main, [action, str(copy.parent)])
    assert not any(character in capsys.readouterr().out for character in "\x1b\0\u202e")


@pytest.mark.parametrize("key", ["world_size", "steps_taken", "rounds", "methods", "config"])
def test_what_a_manifest_does_not_say(step, copy, key, capsys):
    """Found by fuzzing: `upscale checkpoint list` ended in a traceback where the number of ranks was missing."""
    tree = plain(step)
    del tree[key]
    manifest.write(copy, tree)
    hostile.ends_well(use, copy, also=INVALID)
    assert checkpoint_command.main(["list", str(copy.parent)]) == 0
    assert "12 instances" in capsys.readouterr().out


@given(content=st.binary(max_size=80))
def test_any_bytes_for_a_manifest(copy, content):
    (copy / manifest.MANIFEST).write_bytes(content)
    hostile.ends_well(use, copy, also=INVALID)


def test_a_manifest_that_is_too_deep(copy):
    (copy / manifest.MANIFEST).write_text("[" * 100_000)
    with pytest.raises(manifest.InvalidCheckpoint, match="nested too deeply"):
        manifest.read(copy)


@given(data=st.data())
def test_any_file_of_tensors(step, copy, data):
    """Damaged, or with another header, under its right hash."""
    name = data.draw(st.sampled_from(["parameters-00000.safetensors", "lanes-00000.safetensors"]))
    content = (step / name).read_bytes()
    shutil.copytree(step, copy, dirs_exist_ok=True)
    (copy / name).write_bytes(data.draw(hostile.damaged(content) | with_headers(content)))
    tree = plain(step)
    tree["files"][name] = {"bytes": (copy / name).stat().st_size, "blake2b": manifest.hash_file(copy / name)}
    manifest.write(copy, tree)
    hostile.ends_well(use, copy, also=INVALID)


def with_headers(content: bytes) -> st.SearchStrategy[bytes]:
    """The same file with a header of other names, types, shapes and places, and of another length than it says."""
    size = struct.unpack("<Q", content[:8])[0]
    header, tensors = json.loads(content[8 : 8 + size]), content[8 + size :]
    length = st.none() | st.sampled_from([0, 1, 2**20, 2**32, 2**63, 2**64 - 1])

    def whole(tree, said: int | None) -> bytes:
        text = json.dumps(tree).encode()
        return struct.pack("<Q", len(text) if said is None else said) + text + tensors

    return st.builds(whole, hostile.changed(header), length)


LANES = "lanes-00000.safetensors"
REFUSED = {
    "a file above": (lambda t: t["files"].update({"../x": {"bytes": 1, "blake2b": ""}}), "is not the name of a file"),
    "a file elsewhere": (lambda t: t["lanes"].update({"0": "/etc/passwd"}), "is not among its files"),
    "a piece of another file": (lambda t: t["pieces"]["w"][0].update(file="x"), "is not among its files"),
    "pieces over each other": (lambda t: t["pieces"]["w"].append(t["pieces"]["w"][0]), "lie over each other"),
    "a negative place": (lambda t: t["pieces"]["w"][0].update(offset=-1), "not of its form: pieces.w.0.offset"),
    "a size that is a text": (lambda t: t["files"][LANES].update(bytes="1"), "not of its form"),
    "an id that is a path": (lambda t: t["counters"].update(wandb_id="../x"), "not of its form: counters.wandb_id"),
    "a time that is a text": (lambda t: t["counters"].update(seconds="1"), "not of its form: counters.seconds"),
    "a spike that says nothing": (lambda t: t["counters"].update(spikes=[{}]), "not of its form: counters.spikes.0"),
    "no counters": (lambda t: t.pop("counters"), "not of its form: counters"),
    "longer than its tensor": (lambda t: t["pieces"]["w"][0].update(length=99), r"holds 'weight/w' as .*\[24\]"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_manifest_may_not_say(step, copy, kind):
    change, message = REFUSED[kind]
    shutil.copytree(step, copy, dirs_exist_ok=True)
    tree = plain(step)
    change(tree)
    manifest.write(copy, tree)
    with pytest.raises(manifest.InvalidCheckpoint, match=message):
        use(copy)


def test_a_file_that_is_cut_while_it_is_read_is_named(step, copy):
    """After the check of its hash; a mapped file would end the process by SIGBUS."""
    shutil.copytree(step, copy, dirs_exist_ok=True)
    reader = Reader(copy, manifest.verify(copy, World.single()))
    reader.lane(0)
    for path in copy.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(manifest.InvalidCheckpoint, match="lanes-00000.safetensors"):
        reader.lane(0)
    with pytest.raises(manifest.InvalidCheckpoint, match="parameters-00000.safetensors"):
        reader.load([Fragment("w", 0, {"weight": torch.zeros(ELEMENTS)})])


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A file of `upscale export`, without a run."""
    from safetensors.torch import save_file

    config = tiny.config(run__dir="runs/x").resolved()
    model = parametrization.build(config)
    metadata = {"format": export.FORMAT, "config": json.dumps(config_files.as_tree(config)), "step": "1"}
    metadata |= {"instances": "12", "output_multiplier": repr(model.output_multiplier), "versions": "{}"}
    path = tmp_path_factory.mktemp("exported") / "model.safetensors"
    save_file({part.name: part.tensors["weight"].view(-1) for part in whole_parameters(model)}, path, metadata)
    save_file({name: value.detach() for name, value in model.named_parameters()}, path, metadata)
    export.load(path)
    return path


@given(data=st.data())
def test_any_exported_file(exported, tmp_path_factory, data):
    content = exported.read_bytes()
    path = tmp_path_factory.getbasetemp() / "hostile.safetensors"
    path.write_bytes(data.draw(with_headers(content) | hostile.damaged(content)))
    hostile.ends_well(export.load, path)


@given(data=st.data())
def test_any_config_in_an_exported_file(exported, tmp_path_factory, data):
    """Another width or depth is an error before a model of it is made."""
    content = exported.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    metadata = header["__metadata__"]
    tree = data.draw(hostile.changed(json.loads(metadata["config"])))
    text = json.dumps({**header, "__metadata__": {**metadata, "config": json.dumps(tree)}}).encode()
    path = tmp_path_factory.getbasetemp() / "hostile.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
    hostile.ends_well(export.load, path)
    wanted = tiny.config(run__dir=str(tmp_path_factory.getbasetemp() / "none"))
    settings = wanted.init.model_copy(update={"from_": str(path)})
    hostile.ends_well(Initialization, wanted.model_copy(update={"init": settings}).resolved())


@pytest.mark.parametrize(("key", "value"), [("width", 1 << 30), ("depth", 1 << 40), ("vocabulary", 1 << 15)])
def test_a_config_of_a_giant_makes_no_giant(exported, tmp_path, key, value):
    content = exported.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    config = json.loads(header["__metadata__"]["config"])
    config["model"][key] = value
    header["__metadata__"]["config"] = json.dumps(config)
    text = json.dumps(header).encode()
    (tmp_path / "model").write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
    with hostile.little_memory(), pytest.raises(UserError, match="holds .* numbers, but a model of its config has"):
        export.load(tmp_path / "model")
