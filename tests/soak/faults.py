"""What can happen to a round: one function a kind. Each returns when the run is under way again, or about to be."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.soak.soak import DISK_BYTES, Round
from upscale.checkpoint import manifest
from upscale.errors import RUN_ERROR_EXIT_CODE, STOPPED_EXIT_CODE, USER_ERROR_EXIT_CODE
from upscale.launch.signals import STOP_SIGNALS

STORM_CODES = {STOPPED_EXIT_CODE, RUN_ERROR_EXIT_CODE, *(128 + number for number in STOP_SIGNALS)}
KILLS = ("kill_a_rank", "kill_all_ranks", "kill_while_starting", "jump_the_clock")


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def kill_a_rank(run: Round) -> None:
    ranks = run.ranks()
    if ranks:
        send(run.random.choice(ranks), signal.SIGKILL)
        run.wait_for_others(ranks)


def kill_all_ranks(run: Round) -> None:
    ranks = run.ranks()
    for pid in ranks:
        send(pid, signal.SIGKILL)
    run.wait_for_others(ranks)


def kill_while_starting(run: Round) -> None:
    kill_a_rank(run)
    run.wait(run.ranks, "the ranks start again")
    time.sleep(run.random.uniform(0, 2))
    kill_a_rank(run)


def kill_the_supervisor(run: Round) -> None:
    """Its ranks save and end. A start beside them is refused, or, before they have begun, refuses them."""
    orphans = run.ranks()
    send(run.process.pid, signal.SIGKILL)
    run.killed_supervisors += 1
    run.ends()
    if run.random.random() < 0.5:
        run.start()

        def decided() -> bool:
            return run.process.poll() is not None or not [pid for pid in orphans if pid in run.alive()]

        run.wait(decided, "one of two has left", running=False)
        # It may have been refused just before they left, and not have ended yet.
        goal = run.last_step() + 1
        run.wait(lambda: run.process.poll() is not None or run.last_step() >= goal, "it trains or ends", running=False)
        run.settle({USER_ERROR_EXIT_CODE})
    else:
        run.wait(lambda: not run.alive(), "the orphans have ended", running=False)
        run.start()


def kill_everything(run: Round) -> None:
    run.kill_everything()
    run.start()


def hang(run: Round) -> None:
    """One rank is stopped for good: the others notice, or, when it is alone, the supervisor."""
    run.wait_for_steps(1)  # only from then on does anybody promise to
    ranks = run.ranks()
    if ranks:
        send(run.random.choice(ranks), signal.SIGSTOP)
        run.wait_for_others(ranks)


def pause(run: Round) -> None:
    """One rank is stopped for a moment, which costs nothing but this moment."""
    ranks = run.ranks()
    for pid in ranks[:1]:
        send(pid, signal.SIGSTOP)
        time.sleep(run.random.uniform(0.1, 2))
        send(pid, signal.SIGCONT)


def slow_step(run: Round) -> None:
    (run.folder / "inject" / "slow").touch()
    run.wait(lambda: not (run.folder / "inject" / "slow").exists(), "a rank is slow")


def crash_the_writer(run: Round) -> None:
    """The thread that saves ends with an exception, which the rank tells at its next save."""
    ranks = run.ranks()
    (run.folder / "inject" / "writer").touch()
    run.wait(lambda: not (run.folder / "inject" / "writer").exists(), "a save crashes")
    if ranks == run.ranks():
        run.wait_for_others(ranks)


def stop(run: Round) -> None:
    run.wait_for_ranks()
    run.stop(run.random.choice(STOP_SIGNALS), run.random.choice([run.process.pid, *run.ranks()]))
    run.start()


def storm(run: Round) -> None:
    """Requests to stop in quick succession, after the first of which a second one ends a rank at once."""
    starting = not run.ranks()
    for _ in range(run.random.randint(3, 20)):
        send(run.random.choice([run.process.pid, *run.ranks()]), run.random.choice(STOP_SIGNALS))
        time.sleep(run.random.uniform(0, 0.02))
    send(run.process.pid, signal.SIGTERM)
    code = run.ends()
    # The supervisor may not yet have seen, when the storm begins, that the fault before killed a rank.
    killed = {128 + signal.SIGKILL} if run.happened and run.happened[-1]["kind"] in KILLS else set()
    # A supervisor that still imports does not listen yet: the signal itself ends it, before anything was begun.
    unheard = {-number for number in STOP_SIGNALS} if starting else set()
    assert code in STORM_CODES | killed | unheard, f"a storm of signals ended with {code}"
    run.start()


def damage(run: Round, spoil: Callable[[Round, Path], None]) -> None:
    """To a file of the newest step, while nobody reads it and another step is valid."""
    if run.random.random() < 0.5:
        run.stop()
    else:
        run.kill_everything()
    valid = run.valid_steps()
    if len(valid) > 1:
        folder = manifest.step_folder(run.directory / "checkpoints", valid[-1])
        spoil(run, run.random.choice(sorted(folder.iterdir())))
        run.damaged += 1
    run.start()


def flip(run: Round) -> None:
    def spoil(_run: Round, path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[run.random.randrange(len(content))] ^= 1 << run.random.randrange(8)
        path.write_bytes(content)

    damage(run, spoil)


def truncate(run: Round) -> None:
    damage(run, lambda _run, path: path.write_bytes(path.read_bytes()[: run.random.randrange(path.stat().st_size)]))


def half_delete(run: Round) -> None:
    def spoil(_run: Round, path: Path) -> None:
        others = sorted(path.parent.iterdir())
        for other in run.random.sample(others, run.random.randint(1, len(others))):
            other.unlink()

    damage(run, spoil)


def make_unreadable(run: Round) -> None:
    """As a file that a failing disk cannot give; permissions do not stop root."""

    def spoil(_run: Round, path: Path) -> None:
        path.unlink()
        path.symlink_to(path.name) if run.random.random() < 0.5 else path.mkdir()

    damage(run, spoil)


def fill_the_disk(run: Round) -> None:
    """From some moment on any write may fail, in the middle too; then there is room again."""
    if not run.mounted:
        return
    ballast = run.disk / "ballast"
    state = os.statvfs(run.disk)
    free = state.f_bavail * state.f_frsize - run.random.randrange(2 << 20)
    with contextlib.suppress(OSError), open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, min(DISK_BYTES, max(1, free)))
    time.sleep(run.random.uniform(1, 8))
    ballast.unlink()
    # A start that failed just before that may not have ended yet, and may be the last that the supervisor tries.
    goal = run.last_step() + 2
    run.wait(lambda: run.process.poll() is not None or run.last_step() >= goal, "it trains or ends", running=False)
    run.settle({RUN_ERROR_EXIT_CODE})


def jump_the_clock(run: Round) -> None:
    """Ranks that are started from now on see times of years ago and years ahead; or no longer."""
    order = run.folder / "inject" / "clock"
    order.unlink() if order.exists() else order.touch()
    kill_a_rank(run)


def move_the_run(run: Round) -> None:
    run.kill_everything() if run.random.random() < 0.5 else run.stop()
    target = run.disk / f"moved-{len(run.happened)}"
    if run.directory.exists():
        run.directory.rename(target)
    run.directory = target
    run.start()


def start_two(run: Round) -> None:
    """A second start in the same run directory, while the first runs or begins: one of them goes on, untouched."""
    other_shape = run.shape()
    other = run.launch(run.directory, *other_shape)
    run.wait(lambda: run.process.poll() is not None or other.poll() is not None, "one of two is refused", False)
    if other.poll() is None:
        run.process, other = other, run.process
        run.shapes.append(other_shape)
    assert other.poll() == USER_ERROR_EXIT_CODE, f"the one of two that left ended with {other.poll()}"
    run.refused_starts += 1


KINDS: dict[str, Callable[[Round], None]] = {
    function.__name__: function
    for function in (
        kill_a_rank,
        kill_all_ranks,
        kill_while_starting,
        kill_the_supervisor,
        kill_everything,
        hang,
        pause,
        slow_step,
        crash_the_writer,
        stop,
        storm,
        flip,
        truncate,
        half_delete,
        make_unreadable,
        fill_the_disk,
        jump_the_clock,
        move_the_run,
        start_two,
    )
}
