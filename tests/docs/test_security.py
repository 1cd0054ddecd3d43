"""Each promise of docs/security.md has a test that exists; and the promises that no other room tests."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest
import torch

from tests.docs.markdown import ROOT
from upscale.checkpoint import manifest
from upscale.checkpoint.writer import Writer, snapshot
from upscale.config import files as config_files
from upscale.corpora.archives.inputs import entries
from upscale.distributed.world import World
from upscale.engines import Fragment
from upscale.errors import UserError

PAGE = (ROOT / "docs/security.md").read_text(encoding="utf-8")
TRUSTED = "What is trusted"


def promises() -> list[str]:
    """The points of every part but that of what is trusted."""
    parts = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
    points = [re.split(r"^- ", part, flags=re.MULTILINE)[1:] for part in parts if not part.startswith(TRUSTED)]
    return [point for part in points for point in part]


def test_every_promise_names_a_test_that_exists():
    assert len(promises()) > 20
    for promise in promises():
        named = re.findall(r"\[`(test_\w+)`\]\(\.\./(tests/[\w/]+\.py)\)", promise)
        assert named, promise
        for test, file in named:
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            assert test in found, f"{file} has no {test}"


# Between a rank and its own worker processes, through pipes that nobody else has.
UNPICKLING_ALLOWED = {"upscale/data/worker_pool.py"}


def calls(path) -> set[str]:
    """The dotted names that a file calls, and `shell=True` where it passes that."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            found.add(ast.unparse(node.func))
            found |= {"shell=True" for word in node.keywords if word.arg == "shell"}
    return found


def test_no_code_comes_from_a_file():
    """No call in the package that runs or unpickles a text or a file; `.eval()` of a model is another thing."""
    forbidden = r"(pickle|torch|dill|marshal|shelve|joblib|numpy|np)\.(load|loads|open|Unpickler)|eval|exec|compile"
    forbidden += r"|os\.(system|popen)|yaml\.(load_all|full_load|unsafe_load)|shell=True"
    for path in sorted((ROOT / "upscale").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        wrong = {call for call in calls(path) if re.fullmatch(forbidden, call)}
        assert not wrong or name in UNPICKLING_ALLOWED, (name, wrong)


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "..", "", ".x", "a\nb"])
def test_a_run_name_is_no_path(tmp_path, name):
    (tmp_path / "config.yaml").write_text(f"run: {{name: {name!r}}}".replace("'", '"'))
    with pytest.raises(UserError, match="run.name: string should match pattern"):
        config_files.load(tmp_path / "config.yaml")


def test_removing_a_step_follows_no_link(tmp_path):
    """A user moved an old step elsewhere and left a link: the link goes, the step stays, and saving does not fail."""
    folder = tmp_path / "checkpoints"
    writer = Writer(folder, World.single(), 1, asynchronous=False)
    for step in (1, 2):
        if step == 2:
            manifest.step_folder(folder, 1).rename(tmp_path / "moved")
            manifest.step_folder(folder, 1).symlink_to(tmp_path / "moved")
        piece = Fragment("w", 0, {"weight": torch.zeros(4)})
        content = {"counters": {"step": step, "instances": step}, "milestone": False}
        writer.save(snapshot(step, [piece], {}, content))
        assert writer.failure is None
    assert [path.name for path in folder.iterdir()] == ["step-00000002"]
    assert manifest.verify(tmp_path / "moved", World.single())["step"] == 1


def test_links_in_a_folder_are_not_followed(tmp_path):
    (tmp_path / "secret.c").write_text("secret")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "b.c").write_text("secret")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a.c").write_text("text")
    (tree / "link.c").symlink_to(tmp_path / "secret.c")
    (tree / "folder").symlink_to(tmp_path / "outside")
    assert [entry.name for entry in entries(tree, lambda _: None)] == [b"a.c"]


def test_errors_obey_nothing(tmp_path):
    """What a command says of a file that holds a terminal's commands."""
    (tmp_path / "config.yaml").write_text('"\\e]0;x\\a\\e[2J": {}\n"\\u202e": {}')
    command = [sys.executable, "-m", "upscale.cli", "plan", "--config", tmp_path / "config.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 2
    assert not set("\x1b\x07\u202e") & set(done.stderr) and "\\x1b]0;x\\x07" in done.stderr and "\\u202e" in done.stderr
