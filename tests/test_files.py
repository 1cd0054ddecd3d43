"""Files that many processes write to, as a crash leaves them."""

from __future__ import annotations

import pytest

from upscale.files import append_json_lines, read_json_lines


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        (None, []),
        ("", []),
        ('{"a": 1}\n', [1]),
        ('{"a": 1}\n{"a": 2', [1]),
        ('{"a', []),
        ('{"a": 1}\n{"a": 2}', [1, 2]),
    ],
)
def test_what_is_added_stands_in_place_of_half_a_line(tmp_path, before, kept):
    """A file as a kill or a full disk left it; a last object that is whole stays, also without its line end."""
    path = tmp_path / "records.jsonl"
    if before is not None:
        path.write_text(before)
    append_json_lines(path, [{"a": 8}, {"a": 9}])
    assert [record["a"] for record in read_json_lines(path)] == [*kept, 8, 9]
    assert path.read_text().endswith('{"a": 8}\n{"a": 9}\n')
