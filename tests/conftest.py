"""Fixtures of more than one folder, and how pytest-xdist shares the tests out."""

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slurm's tests first: they take longest, and mostly wait while others compute."""
    items.sort(key=lambda item: _group(item.nodeid) != "slurm")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """A worker gets whole files, whose tests share fixtures, in our order, and one worker all that need the cluster."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    config.option.loadscopereorder = False
    return Scheduler(config, log)


def _group(nodeid: str) -> str:
    path = nodeid.split("::")[0]
    return "slurm" if path.startswith("tests/slurm/") else path


@pytest.fixture
def one_thread():
    """For small arrays: two threads that wait for a busy core crawl."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)
