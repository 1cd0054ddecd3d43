"""Rows drawn ahead, against the same lanes drawn in turn: bit for bit, whatever happens in between."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from tests import tiny
from tests.pace import Deadline
from tests.ranks import run_ranks
from tests.test_train import SLOW_STEPS, command, finish, logged, losses, metrics, start, torchrun, train, wait_for
from upscale import train as program
from upscale.data import prefetch, training_rows
from upscale.data.training_rows import SnapshotRows
from upscale.data.worker_pool import Workers
from upscale.errors import RunError, UserError
from upscale.launch import signals
from upscale.sources.recurrent import native
from upscale.sources.uniform import UniformSource

MIXTURE = "[{kind: lstm, hidden: 8}, {kind: utm}, {kind: uniform}]"
MODES = ("thread", "workers")
CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


def settings(**changes):
    return tiny.config(data__sources=MIXTURE, data__draw=2, **changes)


def opened(mode, device=CPU, **changes):
    """Lanes 0 to 4 drawn in one mode, by two workers if by workers."""
    chosen = settings(data__ahead=mode, **({"data__workers": 2} if mode == "workers" else {}), **changes)
    return prefetch.prefetched(chosen, training_rows.open_rows(chosen), range(5), device)


@pytest.fixture
def rows(request):
    made = opened(request.param)
    yield made
    made.close()


def test_auto_leaves_sources_of_many_launches_to_workers():
    """On a GPU by the sources that are used, with a line that names them; on a CPU, and where it is said, never."""
    gpu = torch.device("cuda")
    for sources, expected in (
        ("[{kind: lstm}, {kind: uniform}]", "thread"),
        ("[{kind: lstm}, {kind: dyck}, {kind: transformer, weight: 0}]", "workers"),
        ("[{kind: dyck, weight: 0}, {kind: lstm}]", "thread"),
    ):
        chosen = tiny.config(data__sources=sources)
        mode, line = prefetch.way(chosen, gpu)
        assert mode == expected
        assert (line is None) == (mode == "thread") and "transformer" not in (line or "")
        assert prefetch.way(chosen, CPU) == ("none", None)
    assert "because dyck would" in prefetch.way(tiny.config(data__sources="[{kind: dyck}]"), gpu)[1]
    assert prefetch.way(tiny.config(data__sources="[{kind: dyck}]", data__ahead="thread"), gpu) == ("thread", None)


@pytest.mark.parametrize("rows", MODES, indirect=True)
def test_rows_and_states_are_those_of_lanes_in_turn(rows):
    """Against Lanes: numbers that were told, that were not, and that turned out otherwise; states at each point."""
    plain = opened("none")
    for count, following in ((2, 2), (2, 3), (3, 1), (5, 4), (4, None), (1, 1)):
        assert torch.equal(rows.draw(count, following), plain.draw(count))
        for name, value in plain.state().items():
            assert torch.equal(rows.state()[name], value)


@pytest.mark.parametrize("rows", MODES, indirect=True)
def test_a_state_is_taken_up_while_a_draw_is_under_way(rows):
    """Against Lanes: back to an older state, and on in another object, with a draw asked for before."""
    plain = opened("none")
    rows.draw(2, 2)
    old = {name: value.clone() for name, value in rows.state().items()}
    later = rows.draw(2, 2)
    rows.load_state(old)
    assert torch.equal(rows.draw(2, 1), later)
    plain.load_state(rows.state())
    assert torch.equal(rows.draw(1), plain.draw(1))


def test_a_schedules_growth_is_followed_without_a_wrong_guess(tmp_path):
    """Against training in turn: a batch that grows as training goes; no draw is ever undone."""
    run_ranks(_trained, 1, tmp_path)
    assert losses(tmp_path / "thread") == losses(tmp_path / "none")
    batches = [record["global_batch"] for record in metrics(tmp_path / "thread")]
    assert len(set(batches)) > 3 and sum(batches) == metrics(tmp_path / "thread")[-1]["instances"]


def test_a_run_resumed_in_another_mode_has_the_same_losses(tmp_path):
    """Against one run in turn: six steps with workers, the others with a thread.

    And one that goes on without a C compiler, which rounds otherwise, says so.
    """
    run_ranks(_resumed, 1, tmp_path)
    assert losses(tmp_path / "ahead") == losses(tmp_path / "none")
    assert len(losses(tmp_path / "none")) == 12
    log = (tmp_path / "log/log.txt").read_text()
    assert log.count("WARNING: rows were computed by native and are now by eager on cpu") == 1
    assert "WARNING: rows" not in (tmp_path / "ahead/log.txt").read_text()


def _resumed(world, folder):
    for name, mode, steps in (("none", "none", None), ("ahead", "workers", 6), ("ahead", "thread", None)):
        changes = dict(run__dir=folder / name, data__ahead=mode, data__sources=MIXTURE, run__seed=4)
        config = tiny.config(**changes, **({"run__steps": steps} if steps else {}))
        program.Trainer(config, world, [], training_rows.open_rows(config), None, signals.StopRequest()).run()

    with pytest.MonkeyPatch.context() as patch:
        for steps in (2, 3):
            config = tiny.config(run__dir=folder / "log", data__sources=MIXTURE, run__steps=steps)
            program.Trainer(config, world, [], training_rows.open_rows(config), None, signals.StopRequest()).run()
            patch.setattr(native, "available", lambda: False)


def _trained(world, folder):
    growing = dict(schedule__batch__end=60, schedule__batch__to=144, data__draw=1, schedule__instances=200, run__seed=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefetch.Prefetcher, "_undo", lambda *_: pytest.fail("a wrong guess"))
        for mode in ("none", "thread"):
            config = tiny.config(run__dir=folder / mode, data__ahead=mode, **growing)
            program.Trainer(config, world, [], training_rows.open_rows(config), None, signals.StopRequest()).run()


class Faulty(UniformSource):
    """Breaks in the third round."""

    def write(self, stream, conditions, seeds):
        if int(stream.rounds[0]) == 2:
            raise UserError("the third round is bad")
        return super().write(stream, conditions, seeds)


def faulty(lanes, device):
    from tests.data.test_lanes import arguments
    from upscale.data.lanes import Lanes

    return Lanes(**arguments(lanes=lanes, sources=[(Faulty(vocabulary=256), 1.0)]))


@pytest.mark.parametrize("mode", MODES)
def test_errors_are_raised_by_the_draw_that_takes_the_rows(mode):
    """Against drawing in turn: the same exception at the same draw; what was before it can still be saved."""
    made = SnapshotRows(faulty(range(4), "cpu")) if mode == "thread" else Workers(faulty, range(4), 2)
    rows = prefetch.Prefetcher(made, CPU)
    plain = faulty(range(4), "cpu")
    for _ in range(2):
        assert torch.equal(rows.draw(4, 4), plain.draw(4))
    before = plain.state()
    assert torch.equal(rows.state()["buffers"], before["buffers"])
    with pytest.raises(UserError, match="the third round is bad"):
        rows.draw(4, 4)
    rows.load_state(before)
    with pytest.raises(UserError, match="the third round is bad"):
        rows.draw(4)
    rows.close()


def test_what_a_worker_cannot_make_is_told_at_the_start():
    """Against the message that a rank of its own would give."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'wrong'"):
        Workers(functools.partial(faulty, wrong=1), range(4), 2)


def test_a_worker_that_dies_is_an_error_and_not_a_hang():
    """Against a kill from outside, as the kernel does when memory is short: told at the next draw."""
    workers = Workers(faulty, range(4), 2)
    rows = prefetch.Prefetcher(workers, CPU)
    rows.draw(4)
    workers._workers[1].process.kill()
    with pytest.raises(RunError, match="a worker of data.ahead=workers was killed by signal 9"):
        rows.draw(4)
    rows.close()


@pytest.mark.parametrize("mode", MODES)
def test_closing_leaves_no_thread_and_no_process(mode):
    before = set(threading.enumerate())
    rows = opened(mode)
    processes = [worker.process for worker in rows._rows._workers] if mode == "workers" else []
    rows.draw(2, 2)
    rows.close()
    assert set(threading.enumerate()) == before
    assert all(process.poll() == 0 for process in processes)


def children(pid):
    found = subprocess.run(["ps", "--ppid", str(pid), "-o", "pid=,args="], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if "upscale.data.worker_pool" in line]


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGTERM, 75, id="TERM"),
        pytest.param(signal.SIGINT, 130, id="INT", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, id="KILL", marks=pytest.mark.slow),
    ],
)
def test_workers_end_with_their_rank_however_it_ends(tmp_path, number, code):
    """A signal to the rank and its workers alike, as Slurm sends it; the stop still saves a whole checkpoint."""
    extra = ["data.ahead=workers", "data.workers=2", f"data.sources={MIXTURE}"]
    process = start([sys.executable, "upscale/train.py", *command(tmp_path, *SLOW_STEPS, *extra)])
    wait_for(lambda: logged(tmp_path), process)
    workers = children(process.pid)
    assert len(workers) == 2
    if number != signal.SIGKILL:
        for pid in workers:
            os.kill(pid, number)
    process.send_signal(number)
    assert finish(process)[0] == code
    deadline = Deadline(30)
    while any(map(alive, workers)):
        assert not deadline.passed(), "a worker outlived its rank"
        time.sleep(0.05)


@pytest.mark.slow
def test_training_ahead_and_resuming_give_the_same_losses(tmp_path):
    """Against one run in turn: each mode in two parts, the second by two ranks in the other mode; equal files."""
    extra = [f"data.sources={MIXTURE}", "run.seed=4"]
    for name, first, second in (("none", "none", "none"), ("ahead", "workers", "thread")):
        train(tmp_path / name, *extra, f"data.ahead={first}", "run.steps=6")
        code, output = finish(start([*torchrun(2), *command(tmp_path / name, *extra, f"data.ahead={second}")]))
        assert code == 0, output
    assert "changed since the last start: data.ahead: 'workers' -> 'thread'" in output
    assert losses(tmp_path / "ahead") == losses(tmp_path / "none")


def test_settings_that_do_not_fit_are_named(tmp_path):
    """Against the message, before anything is started."""
    output = train(tmp_path, "data.workers=2", "data.ahead=thread", expect=2)
    assert "data.workers: 2 is read with data.ahead=workers only" in output


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", MODES)
def test_a_stream_of_its_own_changes_nothing(mode):
    """Against drawing on the caller's stream, with work on it between the draws; for workers, against the CPU."""
    device = torch.device("cuda", torch.cuda.current_device())
    rows, plain = opened(mode, device), opened("none", device if mode == "thread" else CPU)
    work = torch.randn(2048, 2048, device=device)
    for count, following in ((2, 2), (2, 3), (3, 1), (5, 4), (4, None), (1, 1)):
        drawn = rows.draw(count, following)
        for _ in range(20):
            work = torch.tanh(work @ work)
        assert drawn.device == device and torch.equal(drawn.cpu(), plain.draw(count).cpu())
        del drawn
        for name, value in plain.state().items():
            assert torch.equal(rows.state()[name].cpu(), value.cpu())
    rows.close()
