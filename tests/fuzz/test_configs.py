"""Any tree ends in a config, or in one clear error; so does any text, any override, and any study file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import hostile
from upscale.config import Config, schema
from upscale.config import files as config_files
from upscale.errors import UserError
from upscale.files import dump_yaml, parse_yaml
from upscale.study import loading

SMALL = config_files.as_tree(Config())
STUDY = yaml.safe_load(Path("configs/studies/nca.yaml").read_text())


def loads(path: Path, overrides: list[str] = ()) -> None:
    """A config that loads can be resolved, written and read back."""
    config = hostile.ends_well(config_files.load, path, overrides)
    if config is not None:
        resolved = config.resolved()
        schema.buffer_rows(resolved.data)
        path.write_text(dump_yaml(config_files.as_tree(resolved)))
        assert config_files.load(path) == resolved


@given(tree=hostile.changed(SMALL))
def test_any_tree(tmp_path_factory, tree):
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    loads(path)


@given(content=hostile.damaged(dump_yaml(SMALL).encode()) | st.binary(max_size=60))
def test_any_file(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_bytes(content)
    loads(path)


@given(
    key=st.sampled_from([f"{name}.{key}" for name, section in SMALL.items() for key in section]) | hostile.texts,
    value=st.text(alphabet="0123456789.eE+-_:[]{}&*!|>%@`'\"#, \n\tabcinftrue~", max_size=20),
)
def test_any_override(tmp_path_factory, key, value):
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_text("{}")
    loads(path, [f"{key}={value}"])


@given(tree=hostile.changed(STUDY))
def test_any_study(tmp_path_factory, tree):
    path = tmp_path_factory.getbasetemp() / "study.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    hostile.ends_well(loading.load, path)


@given(content=hostile.damaged(Path("configs/studies/nca.yaml").read_bytes()))
def test_any_study_file(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "study.yaml"
    path.write_bytes(content)
    hostile.ends_well(loading.load, path)


BAD_YAML = {
    "a date that does not exist": "run: {name: 2001-13-45}",
    "half a surrogate pair": '"\\ud800": 1',
    "a number that is none": "run: {seed: !!int x}",
    "a list for a key": "{[1, 2]: 3}",
    "a circle": "run: &a {name: *a}",
    "too deep": "[" * 2000,
    "too many digits": "run: {seed: " + "9" * 5000 + "}",
    "billion laughs": "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
    "an object of Python": "run: !!python/object/apply:os.system ['touch /tmp/never']",
}


@pytest.mark.parametrize("kind", BAD_YAML)
def test_yaml_that_is_made_to_break_its_reader(tmp_path, kind):
    """Each was found by fuzzing or is well known; none may end in a traceback, take long, or run anything."""
    (tmp_path / "config.yaml").write_text(BAD_YAML[kind])
    for load in (config_files.load, loading.load):
        with pytest.raises(UserError) as caught, hostile.little_time():
            load(tmp_path / "config.yaml")
        assert len(str(caught.value)) < 5000


def test_aliases_that_a_config_may_use():
    assert parse_yaml("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}") == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}
