"""The coordinate check: flat slopes with muP, steep ones without, and the command that draws them."""

from __future__ import annotations

import json
import math

import pytest

from tests import tiny
from upscale.cli import coordcheck
from upscale.config import Config
from upscale.coordcheck import coordinates
from upscale.coordcheck.widths import small
from upscale.errors import UserError
from upscale.model import blocks, parametrization

WIDTHS = (32, 64, 128, 256)
BLOCKS = list(blocks.KINDS)


def config(**changes: object) -> Config:
    """Rates as the shipped configs have them."""
    return tiny.config(model__width=128, model__heads=4, optimizer__learning_rate=1e-3, **changes)


def slopes(chosen: Config) -> dict[str, coordinates.Coordinate]:
    models = [(one, parametrization.build(one)) for one in small(chosen, WIDTHS)]
    return coordinates.slopes(WIDTHS, [coordinates.measure_plainly(*one) for one in models])


def steep(found: dict[str, coordinates.Coordinate]) -> list[str]:
    return [name for name, one in found.items() if coordinates.steep(name, one)]


@pytest.mark.parametrize("qk_norm", ["false", "true"])
@pytest.mark.parametrize("block", BLOCKS)
def test_slopes_are_flat_with_mup(block, qk_norm, one_thread):
    """With qk_norm too: heads are of one size, so that 1/sqrt(k) for 1/k is no slope."""
    found = slopes(config(model__block=block, model__qk_norm=qk_norm))
    assert len(found) == 4 * 3 + 1 and not steep(found), found


@pytest.mark.parametrize("block", BLOCKS)
def test_slopes_are_steep_without_mup(block, one_thread):
    assert steep(slopes(config(model__block=block, mup__enabled="false")))


def test_a_slope_is_the_exponent_of_a_power():
    assert coordinates.slope([64, 128, 256], [8.0, 4.0, 2.0]) == pytest.approx(-1)
    assert coordinates.slope([64, 128, 512], [3.0, 3.0, 3.0]) == pytest.approx(0)
    assert math.isnan(coordinates.slope([64, 128], [0.0, 1.0]))
    assert coordinates.steep("a", coordinates.Coordinate(0.0, math.nan)) == ["change"]
    assert coordinates.steep("a", coordinates.Coordinate(-0.5, 0.5)) == ["size", "change"]
    assert coordinates.steep(coordinates.LOGITS, coordinates.Coordinate(-0.5, 0.1)) == []


def test_small_models_keep_what_the_config_says():
    """The kind of block, heads of one size, and progressive blocks where the config has some."""
    for one in small(config(model__block="llama", model__plain_blocks=2, model__depth=6), WIDTHS):
        assert (one.model.block, one.model.depth, one.model.plain_blocks) == ("llama", 3, 2)
        assert one.model.width // one.model.heads == 32 and one.optimizer == config().optimizer
    (plain, *_) = small(config(model__plain_blocks=6, model__depth=6), WIDTHS)
    assert plain.model.plain_blocks == plain.model.depth == 3


@pytest.mark.parametrize(
    "widths, message",
    [([64, 128], "at least 3"), ([0, 64, 128], "above 0"), ([32, 64, 100], "multiples of a head's size")],
)
def test_widths_that_cannot_be_are_refused(widths, message):
    with pytest.raises(UserError, match=message):
        small(config(), widths)


def arguments(tmp_path, *changes: str) -> list[str]:
    given = tiny.overrides(model__width=128, model__heads=4, optimizer__learning_rate=1e-3)
    return [*given, *changes, "--widths", ",".join(map(str, WIDTHS)), "--to", str(tmp_path / "new" / "check.svg")]


@pytest.mark.parametrize("changes, code", [((), 0), (("mup.enabled=false",), 1)])
def test_the_command_draws_and_says_whether_mup_holds(changes, code, tmp_path, capsys, one_thread):
    assert coordcheck.main(arguments(tmp_path, *changes)) == code
    output = capsys.readouterr().out
    assert ("muP is broken" in output) == bool(code) and ("muP holds" in output) == (not code)
    result = json.loads((tmp_path / "new" / "check.json").read_text())
    assert bool(result["deviations"]) == bool(code) and result["widths"] == list(WIDTHS)
    assert all(line in output for line in result["deviations"])
    if code:
        assert "blocks.*.feedforward_in.weight (hidden): learning rate 0.001 at width 256" in output
        assert "should be 0.00025" in output and "to the power" in output
    assert (tmp_path / "new" / "check.svg").read_text().count("<path") > 20


def test_a_picture_of_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match="must end in .png"):
        coordcheck.main(["--to", str(tmp_path / "check.jpeg2")])
