"""Fixtures of more than one folder, and how pytest-xdist shares the tests out."""

import pytest
import torch

FIRST = (
    "tests/slurm/test_jobs.py",
    "tests/slurm/test_study.py",
    "tests/nullgpu/test_training.py",
    "tests/slurm/test_training.py",
    "tests/nullgpu/",
    "tests/slurm/",
    "tests/engines/",
    "tests/study/",
    "tests/launch/",
    "tests/test_train.py",
    "tests/soak/",
)
"""Where the longest files are, the longest first: a worker that gets one late would end long after the others.

Slurm's mostly wait while others compute. Every worker that runs some of them has a cluster of its own.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: next((n for n, path in enumerate(FIRST) if item.nodeid.startswith(path)), len(FIRST)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """A worker gets whole files, whose tests share fixtures, in our order."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.fixture
def one_thread():
    """For small arrays: two threads that wait for a busy core crawl."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)
