"""Every test of this folder needs the stand-in."""

import pytest

from tests.nullgpu import standin


@pytest.fixture(autouse=True)
def stand_in():
    if reason := standin.unavailable():
        pytest.skip(reason)
