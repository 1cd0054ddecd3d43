"""The config tree: defaults and `auto` against the table in docs/training.md, errors against what a user typed."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import upscale
from upscale import optim, planning, schedule
from upscale.checkpoint import run_directory
from upscale.config import buffer_rows, enriched_rows
from upscale.config import files as config_files
from upscale.errors import UserError
from upscale.files import read_yaml
from upscale.model import parametrization

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "studies")
DEPTHS_AND_HEADS = {
    384: (16, 3),
    512: (22, 4),
    640: (26, 5),
    1024: (34, 8),
    1536: (41, 12),
    2048: (47, 16),
    4096: (59, 32),
}


def problems(*overrides: str, path: Path | None = None) -> list[str]:
    with pytest.raises(UserError) as raised:
        config_files.load(path, list(overrides))
    return str(raised.value).splitlines()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_builds_with_exactly_the_planned_parameters(path):
    """Against the count of a model built on the meta device, and its names, each of which one group trains."""
    config = config_files.load(path).resolved()
    model = parametrization.build(config, "meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == planning.parameters(config.model)
    trained = [name for group in optim.parameter_groups(model, config) for name in group.names]
    assert sorted(trained) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("width", DEPTHS_AND_HEADS)
def test_depth_and_heads_are_the_papers(width):
    """Against the table in docs/training.md; the count is 12 L w^2 and the rest written out."""
    model = config_files.load(CONFIGS / f"w{width}.yaml").resolved().model
    assert (model.depth, model.heads) == DEPTHS_AND_HEADS[width]
    depth = model.depth
    rest = depth * 10 * width + (depth - 8) + 256 * width + 512 * width + 256 * width + 256
    assert planning.parameters(model) == 12 * depth * width**2 + rest


def test_defaults_are_the_papers_data():
    """64 lanes share a batch of 512: 8 rows drawn, 16 enriched, 320 in the buffer, hidden w/10."""
    data = config_files.load(None).resolved().data
    assert (data.draw, enriched_rows(data), buffer_rows(data), data.sources[0].hidden) == (8, 16, 320, 102)


def test_paper_single_lane_is_the_papers_buffer():
    data = config_files.load(CONFIGS / "ablations/paper_single_lane.yaml").resolved().data
    assert (data.lanes, data.draw, enriched_rows(data), buffer_rows(data)) == (1, 69, 138, 2760)
    assert data.sources[0].hidden == 38


def test_numbers_as_users_write_them():
    config = config_files.load(
        None, ["optimizer.learning_rate=3e-4", "schedule.instances=4e6", "schedule.warmup=1.6E6"]
    )
    assert config.optimizer.learning_rate == 3e-4
    assert config.schedule.instances == 4_000_000 and isinstance(config.schedule.instances, int)
    assert config.schedule.warmup == 1_600_000


def test_a_config_from_before_blocks_and_optimizers_had_names_is_the_same(tmp_path):
    """Written without those keys, as runs of earlier versions have it."""
    tree = config_files.as_tree(config_files.load(None))
    del tree["model"]["block"], tree["optimizer"]["kind"], tree["optimizer"]["muon"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    old = config_files.load(tmp_path / "config.yaml")
    assert run_directory.changes(config_files.as_tree(old), config_files.as_tree(config_files.load(None))) == {}
    assert (old.model.block, old.optimizer.kind) == ("paper", "adamw")


def test_all_problems_at_once_with_origin_value_and_nearest_key(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: {widht: 384, dropout: 2}\nmodle: {}\nschedule: {batch: {start: 9, end: 4}}\n")
    lines = problems("model.depth=zwei", "data.sources=[{kind: lstm, hiden: 3}]", "run.seed=-1", path=path)
    text = "\n".join(lines)
    assert lines[0] == "7 problems in the config:"
    assert f"{path}: modle: unknown key; did you mean model?" in text
    assert f"{path}: model.widht: unknown key; did you mean width?" in text
    assert f"{path}: model.dropout: input should be less than 1, given 2" in text
    assert (
        "override 'model.depth=zwei': model.depth: input should be a valid integer, or input should be 'auto'" in text
    )
    assert "data.sources[0].hiden: unknown key; did you mean hidden?" in text
    assert "override 'run.seed=-1': run.seed: input should be greater than or equal to 0, given -1" in text
    assert f"{path}: schedule.batch.end: 4 is below schedule.batch.start = 9" in text


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["model.width=1001", "model.heads=8"],
            "model.width: 1001 is not a multiple of model.heads = 8; the next that is: 1008",
        ),
        (
            ["model.block=lama"],
            "model.block: input should be 'llama', 'paper' or 'prenorm', given 'lama'",
        ),
        (
            ["model.block=llama", "model.width=1080", "model.heads=8"],
            "model.heads: 8 heads of size 135 at width 1080: model.block = llama turns pairs of numbers, so a head's "
            "size must be even",
        ),
        (["model.width=64"], "model.depth: auto gives -16 blocks at width 64"),
        (["schedule.batch.from=2e6"], "schedule.batch.to: 1000000 is before schedule.batch.from = 2000000"),
        (["data.first_target=513"], "data.first_target: 513 leaves no target in a row: at most model.context = 512"),
        (["data.reset.constant=0.9"], "data.reset: constant + noise must be at most 1"),
        (
            ["data.sources=[{kind: lstm, multiplier: [2, 1]}]"],
            "data.sources[0].multiplier: [2.0, 1.0] is not [low, high]",
        ),
        (["model.context=4"], "data.sources[0].seed_tokens: 8 exceeds model.context = 4"),
        (
            ["data.sources=[{kind: lstm, weight: 0}]"],
            "data.sources: all weights are 0; give one of them a",
        ),
        (["data.sources=[{kind: lstm, temperature: 1e-9}]"], "data.sources[0].temperature: 1e-09 is neither 0"),
        (
            ["data.sources=[{kind: transformer, hidden: 10}]"],
            "hidden: 10 must be at least 2 and a multiple of",
        ),
        (
            ["data.sources=[{kind: utm, alphabet: 300}]"],
            "alphabet: input should be less than or equal to 256",
        ),
        (
            ["data.sources=[{kind: utm, program_length: 200}]"],
            "data.sources[0].program_length: 200 exceeds steps = 100: the rest is never read",
        ),
        (
            ["data.sources=[{kind: utm}]", "model.vocabulary=100", "evaluation.every=0"],
            "data.sources[0].alphabet: 128 is more than model.vocabulary = 100",
        ),
        (
            ["data.sources=[{kind: nca, colours: 10}]"],
            "data.sources[0].colours: 10 in patches of [2, 2] need 10000 tokens: more than model.vocabulary = 256",
        ),
        (["data.sources=[{kind: nca, grid: 13}]"], "grid: 13 is not a multiple of the patch's sides [2, 2]"),
        (["data.sources=[{kind: nca, grid: 64}]"], "grid: 64 makes frames of 1024 tokens, but a row holds 513"),
        (["data.sources=[{kind: nca, band: [1, 0.5]}]"], "data.sources[0].band: [1.0, 0.5] is not [low, high]"),
        (
            ["data.sources=[{kind: dyck, brackets: 200}]"],
            "brackets: 200 need 400 tokens: more than model.vocabulary",
        ),
        (["model.vocabulary=100"], "model.vocabulary: 100 is too small for the evaluation, whose texts are bytes"),
        (["model.vocabulary=40000"], "model.vocabulary: input should be less than or equal to 32768, given 40000"),
        (["run.seed=true"], "run.seed: input should be a valid integer, given True"),
        (["data.lanes=2.5"], "data.lanes: input should be a valid integer, given 2.5"),
        (["engine.zero_stage=4"], "engine.zero_stage: input should be 0, 1, 2 or 3, given 4"),
        (["run.name=../x"], "run.name: string should match pattern"),
        (["optimizer.learning_rate=.inf"], "optimizer.learning_rate: input should be a finite number"),
        (["optimizer.spike={windw: 3}"], "optimizer.spike.windw: unknown key; did you mean window?"),
        (["optimizer.spike.factor=0.5"], "optimizer.spike.factor: input should be greater than 1, given 0.5"),
        (
            ["optimizer.spike.action=rollback", "checkpoint.every=0", "checkpoint.milestones=0"],
            "optimizer.spike.action: rollback needs checkpoints during the run",
        ),
        (["model.width"], "must be section.key=value"),
        (["model.width=[1"], "the value is not valid YAML"),
    ],
)
def test_impossible_values(overrides, expected):
    assert expected in "\n".join(problems(*overrides))


def test_a_file_may_merge_what_it_said_before(tmp_path):
    path = tmp_path / "merged.yaml"
    path.write_text("one: &one {width: 384, heads: 3}\ntwo: {<<: *one, width: 512}\n")
    assert read_yaml(path, "config", "a mapping")["two"] == {"width": 512, "heads": 3}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {width: 3\n", "is not valid YAML"),
        ("- 1\n", "a config is a mapping of sections"),
        ("run: {seed: 1, seed: 2}\n", "key 'seed' is given twice"),
        ("run: !!python/object/apply:os.system ['true']\n", "is not valid YAML"),
        ("model: 3\n", "model: input should be a valid dictionary"),
    ],
)
def test_bad_files(tmp_path, text, expected):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert expected in "\n".join(problems(path=path))


def test_a_missing_file_names_its_neighbour():
    assert "did you mean" in problems(path=CONFIGS / "w1042.yaml")[0]


def test_a_written_config_loads_as_itself(tmp_path):
    """Including the versions and commit written beside it."""
    config = config_files.load(CONFIGS / "w1024.yaml", ["run.seed=3", "init.from=runs/other"]).resolved()
    config_files.write(config, tmp_path / "config.yaml")
    assert config_files.load(tmp_path / "config.yaml") == config
    versions = yaml.safe_load((tmp_path / "config.yaml").read_text())["versions"]
    assert set(versions) >= {"upscale", "torch", "deepspeed", "mup", "python", "commit"}


def test_corpora_and_fine_tuning_mistakes_are_all_reported():
    """Each line names the key, what was given and what to do; the shipped fine-tuning configs have none."""
    found = problems(
        "data.kind=corpus",
        "optimizer.freeze=[embeddings, attention, ff, norms, head]",
        "init.reinitialize=[head, head]",
        "optimizer.layer_decay=1.5",
    )
    text = "\n".join(found)
    assert found[0] == "4 problems in the config:", text
    assert "data.corpora: is empty, but data.kind is corpus" in text
    assert "optimizer.layer_decay: input should be less than or equal to 1, given 1.5" in text
    assert "names a part twice" in text and "without init.from every part is random already" in text
    assert "leave a part that can learn" in problems("optimizer.freeze=[embeddings, attention, ff, norms, head]")[1]
    assert "is read with data.kind=corpus only" in problems("data.corpora=[{path: data/wp}]")[1]


@pytest.mark.parametrize("folder", ["3e4", "[x", "null", "1_000", "plain", "a: b", "2020-01-01"])
def test_a_written_config_reads_back_as_it_was(tmp_path, folder):
    """Folders whose names YAML takes for something else."""
    config = config_files.load(None, [f"evaluation.data_dir='{folder}'"]).resolved()
    assert config.evaluation.data_dir == folder
    config_files.write(config, tmp_path / "config.yaml")
    assert config_files.load(tmp_path / "config.yaml").resolved() == config


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]
    command = ["git", *identity, "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def commit_seen_by(root: Path) -> str:
    """What a copy of the package in `root` says of its commit."""
    ended = subprocess.run(
        [sys.executable, "-c", "from upscale.config import files; print(files.versions()['commit'])"],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_the_commit_is_the_package_own_repository_and_no_enclosing_one(tmp_path):
    """A copy inside somebody's repository, then with a repository of its own, then changed."""
    inner = tmp_path / "somebody/inner"
    shutil.copytree(Path(upscale.__file__).parent, inner / "upscale", ignore=shutil.ignore_patterns("__pycache__"))
    git(tmp_path, "init", "-q", "somebody")
    git(inner.parent, "add", ".")
    git(inner.parent, "commit", "-qm", "all")
    (inner.parent / ".gitignore").write_text("__pycache__\n")
    assert commit_seen_by(inner) == "unknown"
    git(inner.parent, "init", "-q", "inner")
    (inner / ".gitignore").write_text("__pycache__\n")
    git(inner, "add", ".")
    git(inner, "commit", "-qm", "inner")
    own = git(inner, "rev-parse", "HEAD")
    assert commit_seen_by(inner) == own
    (inner / ".gitignore").write_text("__pycache__\n*.so\n")
    assert commit_seen_by(inner) == f"{own}-dirty"


def test_a_config_is_written_from_a_checkout_that_is_not_installed(tmp_path, monkeypatch):
    def version(name: str) -> str:
        if name == "upscale":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    config = config_files.load(None).resolved()
    config_files.write(config, tmp_path / "config.yaml")
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())["versions"]
    assert written["upscale"] == "not installed" and written["torch"] == "1"
    assert config_files.load(tmp_path / "config.yaml").resolved() == config


@pytest.mark.parametrize(
    ("name", "row_tokens", "source"),
    [
        ("dyck_balanced_paper", 2048, dict(kind="dyck", variant="balanced", brackets=64, open_probability=0.5)),
        (
            "dyck_words",
            None,
            dict(kind="dyck", variant="words", brackets=30, open_probability=0.5, depth=16, word_tokens=509),
        ),
        ("nest_paper", 512, dict(kind="nesting", structure="nest", words=500, zipf=True, paired=False)),
        (
            "dyck_delimited",
            None,
            dict(kind="dyck", variant="delimited", brackets=64, open_probability=0.55, depth=256, pairs=[128, 768]),
        ),
    ],
)
def test_the_four_things_that_are_called_k_dyck(name, row_tokens, source):
    """Against the settings of each paper or package; rows are as long as there where one is one sample."""
    found = config_files.load(CONFIGS / f"ablations/{name}.yaml").resolved()
    (entry,) = found.data.sources
    assert {key: getattr(entry, key) for key in source} == source
    assert row_tokens in (None, found.model.context + 1)
    assert found.data.first_target == 1 and found.data.control == "none"


def test_the_published_stage_of_k_dyck():
    """arXiv 2601.21725's code: 500 steps of 32 rows at 5e-4, no warm-up, no decay, nothing asleep, no resets."""
    found = config_files.load(CONFIGS / "ablations/dyck_balanced_paper.yaml").resolved()
    assert [found.model.width, found.model.depth, found.model.heads, found.model.dropout] == [768, 12, 12, 0.1]
    for seen in (0, 8000, 15968):
        assert schedule.batch_size(seen, found.schedule, found.data.lanes) == 32
        assert schedule.learning_rate_factor(seen, found.schedule) == 1
        assert schedule.active_blocks(seen, found.schedule, found.model) == 12
    assert found.schedule.instances == 500 * 32 and found.optimizer.betas == [0.9, 0.999]
    assert (found.optimizer.learning_rate, found.optimizer.weight_decay, found.optimizer.clip) == (5e-4, 0.1, 1.0)
    assert (found.data.reset.constant, found.data.reset.noise) == (0, 0)
    assert found.engine.precision == "fp32" and not found.mup.enabled and found.model.plain_blocks == 12
    assert buffer_rows(found.data) == enriched_rows(found.data) == found.data.draw == 1


def test_sources_are_looked_at_where_they_write_rows_only():
    """With corpora neither the default source's seed, longer than a row here, nor its targets matter."""
    corpora = ["data.kind=corpus", "data.corpora=[{path: x}]", "data.first_target=2"]
    assert config_files.load(None, ["model.context=4", *corpora])
    masked = "data.sources=[{kind: lists, task: sort, items: 1}]"
    assert config_files.load(None, ["model.context=4", masked, *corpora])
    assert "data.first_target: 2, but lists chooses its own targets" in "".join(problems(masked, *corpora[2:]))
