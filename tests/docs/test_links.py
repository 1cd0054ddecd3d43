"""Links, pictures, paths and lists of rooms in the documents are true, and the README stays short."""

from __future__ import annotations

import re

import pytest

from tests.docs import markdown
from tests.docs.markdown import ROOT

FOLDERS = ("upscale/", "docs/", "tests/", "configs/", "launch/", "slurm/")


@pytest.mark.parametrize("document", markdown.DOCUMENTS)
def test_links_lead_somewhere(document):
    wrong = []
    for line, target in markdown.links(document):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / document).parent / path if path else ROOT / document
        if not file.exists():
            wrong.append(f"{document}:{line}: {target}: no such file")
        elif anchor and anchor not in markdown.anchors(file.resolve().relative_to(ROOT).as_posix()):
            wrong.append(f"{document}:{line}: {target}: no such heading")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("document", markdown.DOCUMENTS)
def test_paths_in_the_text_exist(document):
    """What a run or a site makes (runs/, corpora/, slurm/site.env) is not in the repository."""
    wrong = []
    for line, text in markdown.quoted(document):
        is_path = text.startswith(FOLDERS) and re.fullmatch(r"[\w./-]+", text) and text != "slurm/site.env"
        if is_path and not (ROOT / text).exists():
            wrong.append(f"{document}:{line}: {text}")
    assert not wrong, "\n".join(wrong)


def test_every_document_is_reached_from_the_readme():
    reached, waiting = set(), ["README.md"]
    while waiting:
        document = waiting.pop()
        if document not in reached:
            reached.add(document)
            for _, target in markdown.links(document):
                path = ((ROOT / document).parent / target.partition("#")[0]).resolve()
                if path.suffix == ".md" and path.is_relative_to(ROOT):
                    waiting.append(path.relative_to(ROOT).as_posix())
    assert set(markdown.DOCUMENTS) - reached == set()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160


def test_the_tree_in_the_readme_is_the_package():
    folders = {path.parent.name for path in (ROOT / "upscale").glob("*/__init__.py")}
    listed = {name for name in markdown.rooms("README.md") if not (ROOT / f"upscale/{name}.py").exists()}
    assert listed == folders


def test_the_readme_and_the_architecture_say_the_same_of_a_room():
    assert markdown.rooms("README.md") == {name: text for name, text in markdown.rooms("docs/architecture.md").items()}
