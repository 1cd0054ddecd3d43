"""Two ranks of a Slurm step that look for each other while others hold the ports: real processes, real sockets."""

from __future__ import annotations

import datetime
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.ranks import free_port
from tests.test_train import finish, start
from upscale.distributed import rendezvous
from upscale.errors import LaunchError

SECONDS = datetime.timedelta(seconds=60)
JOIN = """
import sys
from upscale.console import command
from upscale.distributed.world import World

def main(_):
    world = World.join(timeout_seconds=120)
    print("world", world.gather_objects(world.rank))
    return 0

command.run(main)
"""


def step(job: int, **extra: str) -> list:
    """Two tasks of one step, as srun starts them."""
    shared = {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "localhost"}
    return [
        start([sys.executable, "-c", JOIN], SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), **shared, **extra)
        for rank in range(2)
    ]


@contextmanager
def stranger(port: int, says: bytes | None) -> Iterator[None]:
    """Listens at a port and answers each who connects; None: never."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("", port)))
        held = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                held.append(connection)
                if says is not None:
                    connection.sendall(says)
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        stack.callback(server.shutdown, socket.SHUT_RDWR)
        yield


@pytest.mark.parametrize("says", [b"upscale 99.0 1234\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", None])
def test_a_taken_port_is_passed_over_by_all_ranks(says, monkeypatch):
    """Another step of the same job, a web server, one who hangs up, one who never speaks."""
    job = free_port()
    with stranger(rendezvous.candidates(job, 0)[0], says):
        for code, output in [finish(task) for task in step(job)]:
            assert code == 0 and "world [0, 1]" in output, output


def test_a_given_port_that_is_taken_ends_every_rank_at_once():
    port = free_port()
    with stranger(port, b""):
        first, second = [finish(task) for task in step(7, MASTER_PORT=str(port))]
    assert first[0] == 2 and f"rank 0 cannot listen on port {port}" in first[1], first
    assert second[0] == 2 and "another program answers at localhost" in second[1], second
    assert "Traceback" not in first[1] + second[1]


def test_a_taken_port_of_another_launcher_is_one_message():
    port = free_port()
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with stranger(port, b""):
        code, output = finish(start([sys.executable, "-c", JOIN], **place))
    assert code == 2 and f"cannot listen on MASTER_PORT={port}" in output and "Traceback" not in output, output


def test_a_first_rank_that_never_comes_is_said_after_the_time_out():
    with pytest.raises(LaunchError, match=r"rank 0 was not found at 127.0.0.1"):
        rendezvous.find("127.0.0.1", [free_port()], "1.0", datetime.timedelta(seconds=0.5))


def test_ranks_meet_whichever_comes_first():
    ports = [free_port() for _ in range(3)]
    found = []
    asking = [
        threading.Thread(target=lambda: found.append(rendezvous.find("127.0.0.1", ports, "1.0", SECONDS)), daemon=True)
        for _ in range(2)
    ]
    asking[0].start()
    store = rendezvous.host(ports, "1.0", 3, SECONDS)
    asking[1].start()
    for thread in asking:
        thread.join(60)
    store.set("key", "value")
    assert [other.get("key") for other in found] == [b"value"] * 2
