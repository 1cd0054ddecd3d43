"""Processes that draw rows: the lanes of a rank, divided among them as all lanes are divided among ranks.

A worker is this file run by a fresh interpreter, which gets its part over a socket: the function that makes the rows,
the lanes, then one call after another. It works on the CPU with one thread. It ignores requests to stop, which are the
rank's to answer, and dies with the rank, however that ends: the kernel kills it, and the socket's end ends it where the
kernel cannot.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from upscale.data.lanes import owned_lanes
from upscale.data.training_rows import SnapshotRows
from upscale.errors import RunError
from upscale.machine.parent import end_with_parent

SECONDS_TO_LEAVE = 30
CALLS = ("draw", "origins", "state", "load_state", "take_snapshot", "snapshot")


class Workers:
    """The rows of some lanes, drawn by other processes on the CPU; see `upscale.data.training_rows.RestorableRows`.

    There are `count` processes, at most one a lane. What a worker raises is raised here; one that dies is a RunError.
    """

    def __init__(self, rows: Callable, lanes: Sequence[int], count: int) -> None:
        count = min(count, len(lanes))
        self.lanes = tuple(lanes)
        self._parts = [owned_lanes(len(lanes), number, count) for number in range(count)]
        self._workers = [_Worker() for _ in self._parts]
        for worker, part in zip(self._workers, self._parts, strict=True):
            worker.send((rows, tuple(lanes[place] for place in part)))
        self.method = self._answers()[0]

    def draw(self, rows_per_lane: int) -> torch.Tensor:
        return torch.cat(self._of_all("draw", rows_per_lane))

    def origins(self) -> torch.Tensor:
        return torch.cat(self._of_all("origins"))

    def state(self) -> dict[str, torch.Tensor]:
        return _joined(self._of_all("state"))

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        for worker, part in zip(self._workers, self._parts, strict=True):
            worker.send(("load_state", {name: value[part.start : part.stop].cpu() for name, value in state.items()}))
        self._answers()

    def take_snapshot(self) -> None:
        self._of_all("take_snapshot")

    def snapshot(self) -> dict[str, torch.Tensor]:
        return _joined(self._of_all("snapshot"))

    def close(self) -> None:
        for worker in self._workers:
            worker.close()

    def _of_all(self, name: str, *arguments: object) -> list:
        for worker in self._workers:
            worker.send((name, *arguments))
        return self._answers()

    def _answers(self) -> list:
        """One of each worker, so that none is left behind for the next call; then raises the first problem."""
        answers: list = []
        problems: list[BaseException] = []
        for worker in self._workers:
            try:
                answers.append(worker.receive())
            except Exception as problem:
                problems.append(problem)
        if problems:
            raise problems[0]
        return answers


class _Worker:
    """One process, seen from the rank."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "upscale.data.worker_pool", str(theirs.fileno()), str(os.getpid())],
            env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self.connection = Connection(ours.detach())

    def send(self, message: object) -> None:
        try:
            _send(self.connection, message)
        except OSError:
            raise self._death() from None

    def receive(self) -> Any:
        try:
            answer = _receive(self.connection)
        except (EOFError, OSError):
            raise self._death() from None
        if "problem" in answer:
            raise answer["problem"] from RuntimeError(answer["trace"])
        return answer["result"]

    def _death(self) -> RunError:
        try:
            code = self.process.wait(SECONDS_TO_LEAVE)
        except subprocess.TimeoutExpired:
            code = None
        reason = f"was killed by signal {-code}" if code and code < 0 else f"ended with exit code {code}"
        return RunError(
            f"a worker of data.ahead=workers {reason}. If memory is short, lower data.workers or use data.ahead=none; "
            "the run continues from its newest checkpoint with the same rows either way."
        )

    def close(self) -> None:
        self.connection.close()
        try:
            self.process.wait(SECONDS_TO_LEAVE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _joined(states: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


def _send(connection: Connection, message: object) -> None:
    connection.send_bytes(pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL))


def _receive(connection: Connection) -> Any:
    return pickle.loads(connection.recv_bytes())


def main() -> None:
    """A worker's life: answers calls until its rank leaves."""
    connection, rank = Connection(int(sys.argv[1])), int(sys.argv[2])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent(rank, signal.SIGKILL)
    torch.set_num_threads(1)
    rows = None
    while True:
        try:
            message = _receive(connection)
        except (EOFError, OSError):
            return
        try:
            if rows is None:
                make, lanes = message
                rows = SnapshotRows(make(lanes, "cpu"))
                result = rows.method
            else:
                name, *arguments = message
                assert name in CALLS, name
                result = getattr(rows, name)(*arguments)
            answer: dict[str, object] = {"result": result}
        except Exception as problem:
            answer = {"problem": problem, "trace": traceback.format_exc()}
        try:
            _send(connection, answer)
        except OSError:
            return


if __name__ == "__main__":
    main()
