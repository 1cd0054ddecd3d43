"""A page of twenty runs and thirteen tasks in a real headless browser: what it shows, sorts, filters and fetches."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

from tests.report import browser, many
from upscale.report import canvas, page
from upscale.report.figures import draw
from upscale.report.runs import read_runs

# Where pictures lie, whether the page is wider than its frame, what it fetched, and how large letters are.
LAYOUT = """
const pictures = all("figure").map((one) => {
  const box = one.querySelector("svg").getBoundingClientRect();
  const letters = Math.min(...[...one.querySelectorAll("text")].map((text) => text.getBoundingClientRect().height));
  return { name: one.id, box: [box.x, box.y, box.width, box.height], letters };
});
const root = page.documentElement;
const fetched = view.performance.getEntriesByType("resource").map((entry) => entry.name);
return { pictures, fetched, wide: root.scrollWidth, frame: root.clientWidth, tall: page.body.scrollHeight,
  legend: seen("#runs button").length, back: view.getComputedStyle(page.body).backgroundColor };
"""


@pytest.fixture(scope="module")
def twenty(tmp_path_factory) -> tuple[Path, list[str]]:
    """The page of twenty runs, and its pictures' names."""
    folder = tmp_path_factory.mktemp("twenty")
    runs = read_runs(many.write(folder / "runs"))
    pictures = draw(runs, files=False)
    (folder / "index.html").write_text(page.build(runs, pictures), encoding="utf-8")
    return folder / "index.html", [picture.name for picture in pictures]


def has_colour(pixels: numpy.ndarray, colour: str) -> bool:
    """Whether some pixels are this colour, up to what drawing a thin line mixes in."""
    wanted = numpy.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return bool((numpy.abs(pixels - wanted).max(axis=-1) < 0.12).sum() >= 10)


@pytest.mark.parametrize(("width", "options"), [(1400, ()), (1400, (browser.DARK,)), (480, ())])
def test_twenty_runs_are_legible(twenty, tmp_path, width, options):
    """Wide, dark and narrow: every picture is there with all colours, at a size to be read, and nothing sticks out."""
    path, names = twenty
    height = 10000 if width == 1400 else 22000
    found, screenshot = browser.browse(path, LAYOUT, tmp_path, width, height, *options)
    assert screenshot.shape == (height, width, 3)
    assert sorted(picture["name"] for picture in found["pictures"]) == sorted(names) and len(names) > 25
    assert found["fetched"] == []
    assert found["wide"] <= found["frame"] == width, "only tables scroll sideways, never the page"
    assert found["tall"] <= height and found["legend"] == 20
    dark = bool(options)
    assert found["back"] == ("rgb(20, 22, 24)" if dark else "rgb(255, 255, 255)")
    for picture in found["pictures"]:
        left, top, wide, tall = (round(number) for number in picture["box"])
        assert 300 <= wide <= 470 and left >= 0 and left + wide <= width, picture
        assert picture["letters"] >= 9, picture
        shown = screenshot[top : top + tall, left : left + wide]
        assert numpy.median(shown) < 0.2 if dark else numpy.median(shown) > 0.9
        if picture["name"].startswith("task-"):
            assert all(has_colour(shown, colour) for colour in canvas.PALETTE[:3]), picture["name"]


def test_tables_sort_and_runs_are_filtered_and_found(twenty, tmp_path):
    """What a click, a word and a pointer do, in the order of a reader who does one after the other."""
    script = """
    const rows = (id) => seen(`#${id} tbody tr`).map((row) => row.cells[0].textContent.trim().split("/")[0]);
    const head = (id, place) => page.getElementById(id).tHead.rows[0].cells[place].click();
    const numbers = (id, place) => seen(`#${id} tbody tr`).map((row) => parseFloat(row.cells[place].textContent));
    const type = (text) => {
      page.getElementById("filter").value = text;
      page.getElementById("filter").dispatchEvent(new view.Event("input"));
    };
    const lines = () => new Set(seen("#task-dyck-generated svg [data-run]").map((one) => one.dataset.run)).size;
    const result = { before: rows("table-scores"), lines: lines() };
    head("table-scores", 1); result.rising = numbers("table-scores", 1);
    head("table-scores", 1); result.falling = numbers("table-scores", 1);
    head("table-scores", 0); result.names = rows("table-scores");
    type("UTM  192"); result.filtered = rows("table-runs"); result.filtered_lines = lines();
    result.count = page.getElementById("count").textContent;
    result.legend = seen("#runs button").map((one) => one.textContent.trim());
    seen("#runs button")[0].click(); result.clicked = rows("table-runs");
    page.getElementById("all").click(); result.all = rows("table-runs").length;
    result.closed = page.getElementById("config-3").open;
    all('a[href="#config-3"]')[0].click();
    const config = page.getElementById("config-3");
    result.config = [config.open, config.querySelector("pre").textContent.includes("name: lstm.w128-1")];
    const over = new view.PointerEvent("pointerover", { bubbles: true });
    page.querySelector('#runs [data-run="3"]').dispatchEvent(over);
    result.lit = [...new Set(all(".lit").map((one) => one.dataset.run))];
    const faint = (run) => view.getComputedStyle(page.querySelector(`#loss [data-run="${run}"]`)).opacity;
    result.opacity = [faint(3), faint(4)];
    return result;
    """
    found, _ = browser.browse(twenty[0], script, tmp_path, 1400, 3000)
    assert len(found["before"]) == found["lines"] == found["all"] == 20
    assert found["rising"] == sorted(found["rising"]) and found["falling"] == sorted(found["rising"], reverse=True)
    assert len(set(found["rising"])) > 10
    assert found["names"] == sorted(found["names"]) and len(found["names"]) == 20
    assert sorted(found["filtered"]) == ["utm.w192-0", "utm.w192-1"] == sorted(found["legend"])
    assert found["filtered_lines"] == 2 and found["count"] == "2 shown, 18 hidden"
    assert len(found["clicked"]) == 1
    assert not found["closed"] and found["config"] == [True, True]
    assert found["lit"] == ["3"] and found["opacity"] == ["1", "0.13"]
