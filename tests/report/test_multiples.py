"""Small multiples: what a picture with many lines looks like, by where its parts are drawn."""

from __future__ import annotations

import warnings

import pytest

from upscale.report import canvas, multiples


@pytest.mark.parametrize("count", [1, 3, 8, 30])
def test_a_long_legend_is_below_the_panel_and_leaves_it_its_size(count, monkeypatch):
    """Every label is inside the picture and below the axes, which are as high as with one line."""
    drawn = []
    monkeypatch.setattr(multiples.canvas, "both", lambda figure: drawn.append(figure) or {})
    lines = [
        multiples.Line(f"an_arm_of_{place}", [1, 2], [place, 3.0], [place, 3.0], [place, 3.0], canvas.look_of(place))
        for place in range(count)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib gives up on a layout with a warning
        multiples.draw([multiples.Panel("wp", lines)], "tokens", "bits per character", log_x=False)
        (figure,) = drawn
        figure.canvas.draw()
    (axes,), (legend,) = figure.axes, figure.legends
    labels = [text.get_window_extent() for text in legend.get_texts()]
    assert len(labels) == count
    assert min(label.y0 for label in labels) >= 0 and max(label.y1 for label in labels) < axes.get_window_extent().y0
    assert axes.get_window_extent().height > 0.6 * multiples._HEIGHT_INCHES * figure.dpi
