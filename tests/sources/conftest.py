"""The tests of sources have small arrays."""

import pytest


@pytest.fixture(autouse=True)
def in_one_thread(one_thread):
    return
