"""A study's page on disk, whatever the study is about."""

from __future__ import annotations

import pytest

from upscale.study import page
from upscale.study.schema import AnyStudy


@pytest.mark.parametrize(("seeds", "said"), [([3], True), ([3, 4], False)])
def test_a_page_of_one_seed_says_that_it_concludes_nothing(tmp_path, seeds, said):
    study = AnyStudy(name="mine", seeds=seeds)
    table = page.Table("bits", ["arm", "final"], [["scratch", "3.1"]])
    shown = page.write(
        page.Page([table], state="all have finished"), study, tmp_path, ["upscale", "study", "mine.yaml"]
    )
    written = (tmp_path / "mine.md").read_text()
    assert (page.ONE_SEED in written, page.ONE_SEED in shown) == (said, said)
    assert written.startswith("# The study mine\n\nall have finished\n\n") and "| scratch | 3.1 |" in written
