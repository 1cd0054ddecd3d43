"""Fixtures of more than one folder."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """For small arrays: two threads that wait for a busy core crawl."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)
