"""One thread for the tests of sources: their arrays are small, and two threads that wait for a busy core crawl."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)
