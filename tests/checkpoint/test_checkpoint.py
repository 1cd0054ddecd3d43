"""Checkpoints: what was saved comes back at any world, and nothing that is damaged or half written is ever used."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.ranks import run_ranks
from upscale.checkpoint import manifest
from upscale.checkpoint.reader import Reader
from upscale.checkpoint.writer import Writer, snapshot
from upscale.distributed.world import World
from upscale.engines import Fragment
from upscale.optim import adamw

STATES = ("weight", *adamw.STATES)
SIZES = {"matrix": 101, "bias": 7, "gate": 1}


def value(name: str, state: str) -> torch.Tensor:
    seed = 10 * list(SIZES).index(name) + STATES.index(state)
    return torch.randn(SIZES[name], generator=torch.Generator().manual_seed(seed))


def fragments(world: World, replicated: bool = False, fill: bool = True) -> list[Fragment]:
    """Uneven pieces of three parameters; a rank may hold nothing of a small one."""
    found = []
    for name, size in SIZES.items():
        begin, end = (
            (0, size) if replicated else (size * world.rank // world.size, size * (world.rank + 1) // world.size)
        )
        if begin < end:
            tensors = {
                s: (value(name, s)[begin:end].clone() if fill else torch.full((end - begin,), torch.nan))
                for s in STATES
            }
            found.append(Fragment(name, begin, tensors, *((world.rank, world.size) if replicated else ())))
    return found


def content_of(step: int) -> dict:
    return {"counters": {"step": step, "instances": 0}, "milestone": False}


def lanes(world: World) -> dict[str, torch.Tensor]:
    return {str(lane): torch.full((2, 5), lane, dtype=torch.uint8) for lane in range(world.rank, 4, world.size)}


def save(
    world: World, folder: Path, steps: tuple[int, ...] = (7,), keep: int = 3, milestones: tuple[int, ...] = ()
) -> str | None:
    writer = Writer(folder, world, keep, asynchronous=True)
    for step in steps:
        content = content_of(step) | {"milestone": step in milestones}
        writer.save(snapshot(step, fragments(world, replicated=step % 2 == 0), lanes(world), content))
    writer.wait()
    return writer.failure


def load(world: World, folder: Path) -> tuple[list[str], int | None]:
    """What was warned of, and the step that was loaded, checked against the values that were saved."""
    warnings: list[str] = []
    found = manifest.newest_valid(folder, world, warnings.append)
    if found is None:
        return warnings, None
    reader, targets = Reader(*found), fragments(world, fill=False)
    reader.load(targets, STATES)
    for target, expected in zip(targets, fragments(world), strict=True):
        for state in STATES:
            assert torch.equal(target.tensors[state], expected.tensors[state])
    for lane in lanes(world):
        assert torch.equal(reader.lane(lane), torch.full((2, 5), int(lane), dtype=torch.uint8))
    return warnings, reader.content["counters"]["step"]


@pytest.mark.parametrize(("writers", "readers"), [(1, 3), (3, 2)])
@pytest.mark.parametrize("step", [7, 8], ids=["sharded", "replicated"])
def test_any_world_reads_what_any_world_wrote(tmp_path, writers, readers, step):
    """Sharded pieces, and replicated ones that are saved once."""
    run_ranks(save, writers, tmp_path, (step,))
    assert run_ranks(load, readers, tmp_path) == [([], step)] * readers
    saved = sum(
        piece["length"]
        for pieces in manifest.read(manifest.step_folder(tmp_path, step))["pieces"].values()
        for piece in pieces
    )
    assert saved == sum(SIZES.values())


def test_keeps_the_newest_and_the_milestones(tmp_path):
    assert save(World.single(), tmp_path, (1, 2, 3, 4, 5, 6), keep=2, milestones=(2,)) is None
    assert manifest.steps(tmp_path) == [2, 5, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000005", "step-00000006"]


def damaged_copies(folder: Path):
    """Every way a file of the newest step can be wrong, one at a time: (label, folder)."""
    for path in sorted(manifest.step_folder(folder, 2).iterdir()):
        for kind in ("flip", "truncate", "remove"):
            copy = folder.parent / f"{path.stem}-{kind}"
            shutil.copytree(folder, copy)
            target = manifest.step_folder(copy, 2) / path.name
            content = bytearray(target.read_bytes())
            if kind == "remove":
                target.unlink()
            elif kind == "truncate":
                target.write_bytes(content[:-1])
            else:
                content[len(content) // 2] ^= 1
                target.write_bytes(content)
            yield path.name, copy


def test_every_damage_is_named_and_the_step_before_it_is_used(tmp_path):
    save(World.single(), tmp_path / "good", (1, 2))
    cases = list(damaged_copies(tmp_path / "good"))
    assert len(cases) == 9
    for name, folder in cases:
        warnings, step = load(World.single(), folder)
        assert step == 1 and len(warnings) == 1 and name in warnings[0], (folder, warnings)


def test_a_fallback_is_never_silent(tmp_path, capsys):
    """Also for a caller that brings no way to warn, as `upscale evaluate` and `upscale export` do not."""
    save(World.single(), tmp_path, (1, 2))
    (manifest.step_folder(tmp_path, 2) / manifest.MANIFEST).unlink()
    path, _ = manifest.newest_valid(tmp_path, World.single())
    assert path == manifest.step_folder(tmp_path, 1)
    assert capsys.readouterr().err.startswith("WARNING: checkpoint of step 2 cannot be used, trying the one before it")


def test_every_flipped_bit_of_a_manifest_is_found(tmp_path):
    save(World.single(), tmp_path)
    path = manifest.step_folder(tmp_path, 7) / manifest.MANIFEST
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(manifest.InvalidCheckpoint):
            manifest.read(manifest.step_folder(tmp_path, 7))


def test_a_parameter_that_was_not_saved_is_named(tmp_path):
    save(World.single(), tmp_path)
    found = manifest.newest_valid(tmp_path, World.single())
    missing = Fragment("other", 0, {"weight": torch.zeros(3)})
    with pytest.raises(manifest.InvalidCheckpoint, match="lacks 3 of 3 elements of weight of 'other'"):
        Reader(*found).load([missing], ("weight",))


def test_a_killed_save_leaves_no_step_and_is_cleaned_up(tmp_path):
    """As after a kill -9 in the middle of writing: a partial folder without a manifest."""
    save(World.single(), tmp_path, (1,))
    partial = tmp_path / ".step-00000002.partial"
    partial.mkdir()
    (partial / "parameters-00000.safetensors").write_bytes(b"half")
    assert load(World.single(), tmp_path) == ([], 1)
    assert save(World.single(), tmp_path, (3,)) is None
    assert not partial.exists() and manifest.steps(tmp_path) == [1, 3]


def fail_on_one_rank(world: World, folder: Path) -> tuple[str | None, str | None]:
    """Rank 1's disk is full in the second save; the third works again."""
    from upscale.checkpoint import writer as module

    original, failures = module.save_file, []
    writer = Writer(folder, world, 3, asynchronous=True)
    for step in (1, 3, 5):
        if world.rank == 1:
            module.save_file = disk_full if step == 3 else original
        writer.save(snapshot(step, fragments(world), lanes(world), content_of(step)))
        writer.wait()
        failures.append(writer.failure)
    return tuple(failures)


def disk_full(_tensors, path) -> None:
    Path(path).write_bytes(b"half")
    raise OSError(28, "No space left on device", str(path))


def test_a_full_disk_on_one_rank_fails_that_save_on_every_rank_and_no_other(tmp_path):
    for failures in run_ranks(fail_on_one_rank, 2, tmp_path):
        assert failures[0] is None and failures[2] is None
        assert "rank 1" in failures[1] and "No space left" in failures[1]
    assert manifest.steps(tmp_path) == [1, 5]
    assert not list(tmp_path.glob(".step*"))


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("mount"), reason="needs a real full disk")
def test_a_real_full_disk(tmp_path):
    """On a 64 KiB tmpfs, when mounting is allowed: the save fails with its reason, and the older step still loads."""
    if os.system(f"mount -t tmpfs -o size=64k tmpfs {tmp_path} 2>/dev/null"):
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        assert save(World.single(), tmp_path, (1,)) is None
        big = Fragment("matrix", 0, {state: torch.zeros(100_000) for state in STATES})
        writer = Writer(tmp_path, World.single(), 3, asynchronous=False)
        writer.save(snapshot(2, [big], {}, content_of(2)))
        assert "rank 0" in writer.failure
        assert load(World.single(), tmp_path) == ([], 1)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001"]
    finally:
        os.system(f"umount {tmp_path}")


def test_a_crash_in_the_thread_is_not_swallowed(tmp_path):
    writer = Writer(tmp_path, World.single(), 3, asynchronous=True)
    writer.save(snapshot(1, fragments(World.single()), {}, {"not json": {1, 2}}))
    with pytest.raises(TypeError, match="not JSON serializable"):
        writer.wait()


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path):
    """A step holds JSON and safetensors only; a pickle in place of a file is refused by its hash and by its format."""
    save(World.single(), tmp_path)
    folder = manifest.step_folder(tmp_path, 7)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    torch.save({"x": 1}, folder / "lanes-00000.safetensors")
    content = json.loads((folder / manifest.MANIFEST).read_text())
    target = folder / "lanes-00000.safetensors"
    content["files"][target.name] = {"bytes": target.stat().st_size, "blake2b": manifest.hash_file(target)}
    manifest.write(folder, {key: value for key, value in content.items() if key != "checksum"})
    found = manifest.newest_valid(tmp_path, World.single())
    with pytest.raises(manifest.InvalidCheckpoint, match="not a safetensors file"):
        Reader(*found).lane(0)
