"""The small commands on one tiny trained run, as a user would type them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import upscale
import upscale.errors
from tests import pace
from tests.test_train import environment, finish, start, train
from upscale.checkpoint import manifest, run_directory
from upscale.checkpoint.reader import Reader, whole_parameters
from upscale.distributed.world import World
from upscale.model import parametrization

EVALUATION = ["evaluation.every=72", "evaluation.slices=20", "evaluation.tasks=[wp, dyck, german]"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Twelve steps with three evaluations and an offline wandb run, in two parts."""
    directory = tmp_path_factory.mktemp("verbs") / "run"
    for steps in (7, 12):
        train(
            directory,
            *EVALUATION,
            f"run.steps={steps}",
            "tracking.wandb=offline",
            "checkpoint.every_steps=6",
            "checkpoint.keep=5",
        )
    return directory


def upscale_command(*arguments: object, expect: int = 0) -> str:
    code, output = finish(start([str(Path(sys.executable).parent / "upscale"), *map(str, arguments)]))
    assert code == expect, output
    return output


def evaluations(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]


def test_evaluations_in_the_loop_follow_the_contract(run):
    """At the start, at every crossing, and at each end; a task without data is there with its reason."""
    records = evaluations(run)
    assert sorted({record["step"] for record in records}) == [0, 6, 7, 12]
    fields = """step instances task split bits_per_character markov_bits_per_character markov_order
    optimal_bits_per_character samples""".split()
    assert all(set(fields) <= set(record) for record in records)
    german = [record for record in records if record["task"] == "german"]
    assert german and all("evaluation.data_dir" in record["skipped"] for record in german)
    measured = [record for record in records if not record["skipped"]]
    assert all(record["samples"] == 20 and 5 < record["bits_per_character"] < 12 for record in measured)


def test_evaluate_measures_the_same_as_the_loop_and_appends(run):
    """The standalone forward on loaded weights against the loop's, sharded over two ranks as well."""
    before = evaluations(run)
    output = upscale_command("evaluate", "--run", run, "--checkpoint", 12, "--tasks", "wp", "dyck", "--diagnostics")
    assert "at step 12, 144 instances" in output and "uniform guessing is 8" in output
    (learnt,) = map(json.loads, (run / "diagnostics.jsonl").read_text().splitlines())
    assert (learnt["step"], learnt["instances"], learnt["distances"]) == (12, 144, [4, 8])
    assert all(6 < bits < 12 for bits in learnt["induction_bits"]) and "induction, bits" in output
    assert [one["task"] for one in learnt["texts"]] == ["wp", "dyck"]
    appended = evaluations(run)[len(before) :]
    expected = {r["task"]: r["bits_per_character"] for r in before if r["step"] == 12}
    assert [r["task"] for r in appended] == ["wp", "dyck"]
    for record in appended:
        assert record["bits_per_character"] == pytest.approx(expected[record["task"]], rel=1e-5)
    # The "--" keeps torchrun from reading --run as the beginning of its own --run-path.
    ranks = ["torchrun", "--nproc_per_node=2", "--standalone", "--no-python", "--", "upscale", "evaluate"]
    code, output = finish(start([*ranks, "--run", str(run), "--tasks", "wp"]))
    assert code == 0, output
    assert evaluations(run)[-1]["bits_per_character"] == pytest.approx(expected["wp"], rel=1e-5)
    assert len(evaluations(run)) == len(before) + 3


def test_report(run, tmp_path):
    assert "report written to" in upscale_command("report", run, "--to", tmp_path / "page")
    page = (tmp_path / "page/index.html").read_text()
    assert "tiny" in page and "wp" in page and list((tmp_path / "page").glob("*.png"))
    assert "not a run directory" in upscale_command("report", tmp_path, "--to", tmp_path / "x", expect=2)


def test_sample_shows_rows_and_stands_a_closed_pipe(run):
    assert "distinct" in upscale_command("sample", "--config", "configs/smoke.yaml", "--rows", 2, "--rounds", 1)
    piped = f"{Path(sys.executable).parent}/upscale sample --config configs/smoke.yaml --rounds 3 | head -1"
    done = pace.run(piped, 120, shell=True, env=environment())
    assert done.stdout.count("\n") == 1 and done.stderr == ""


def test_export_and_load_are_bit_equal(run, tmp_path):
    """Against the checkpoint's own weights in our model; loading needs no process group."""
    path = tmp_path / "model.safetensors"
    assert "step 6 " in upscale_command("export", "--run", run, "--step", 6, "--to", path)
    loaded = upscale.load(path)
    config = run_directory.read_config(run)
    expected = parametrization.build(config).eval()
    step = manifest.step_folder(run / "checkpoints", 6)
    Reader(step, manifest.verify(step, World.single())).load(whole_parameters(expected), ("weight",))
    tokens = torch.randint(0, 256, (2, 16))
    assert torch.equal(loaded(tokens), expected(tokens, config.model.depth))
    assert torch.equal(loaded(tokens), expected(tokens, 4)), "blocks that sleep at step 6 must change nothing"
    assert torch.equal(loaded(tokens), upscale.load(run, step=6)(tokens))
    assert not torch.equal(loaded(tokens), upscale.load(run)(tokens))  # of step 12
    assert not torch.distributed.is_initialized()
    assert "no such" in upscale_command("export", "--run", run, "--to", tmp_path / "no/such/file", expect=2).lower()


def test_loading_another_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(upscale.errors.UserError, match="was not written by"):
        upscale.load(tmp_path / "other.safetensors")
    with pytest.raises(upscale.errors.UserError, match="cannot load"):
        upscale.load(tmp_path / "text")
    with pytest.raises(upscale.errors.UserError, match="is not a run directory"):
        upscale.load(tmp_path)
    with pytest.raises(upscale.errors.UserError, match="an exported file holds one step"):
        upscale.load(tmp_path / "other.safetensors", step=6)


def test_checkpoint_list_and_verify(run, tmp_path):
    listing = upscale_command("checkpoint", "list", run)
    assert [line.split()[1] for line in listing.splitlines()] == ["6", "7", "12"]
    assert upscale_command("checkpoint", "verify", run).count("valid") == 3
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", run, copy], check=True)
    target = next((copy / "checkpoints/step-00000007").glob("lanes*"))
    target.write_bytes(target.read_bytes()[:-1] + b"\0\0")
    output = upscale_command("checkpoint", "verify", copy, expect=1)
    assert "step        7  INVALID" in output and target.name in output and output.count("INVALID") == 1
    assert "holds no checkpoint" in upscale_command("checkpoint", "list", tmp_path, expect=2)


def test_wandb_is_offline_and_both_parts_are_one_run(run):
    """wandb's own folders: two starts, one run id."""
    starts = [path.name for path in (run / "wandb").glob("offline-run-*")]
    assert len(starts) == 2 and len({name.rsplit("-", 1)[1] for name in starts}) == 1


def test_samples_of_the_sources_are_written(run):
    text = (run / "samples/step-00000012.txt").read_text()
    assert len(text.splitlines()) == 8 and all(len(line) == 17 for line in text.splitlines())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--run", "nowhere"], "nowhere is not a run directory"),
        (["trian"], "unknown command 'trian'"),
        (["sample", "--rows", "0"], "must be at least 1"),
        (["evaluate"], "required: --run"),
    ],
)
def test_mistakes_exit_2(arguments, message):
    assert message in upscale_command(*arguments, expect=2)
