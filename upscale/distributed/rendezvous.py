"""How the ranks of a Slurm step meet where nobody has told them a port that is sure to be free.

Rank 0 listens on the first free one of a few ports that follow from the job's number, and tells whoever connects which
step it belongs to and where its store is. The others ask at all of these ports, whoever answers there: another step of
the same job, a stranger, or one that never says anything.
"""

from __future__ import annotations

import contextlib
import datetime
import socket
import threading
import time
from collections.abc import Sequence

import torch.distributed as dist

from upscale.errors import LaunchError

PORTS = 8
ANSWER_SECONDS = 5.0
RETRY_SECONDS = 0.2
LONGEST_ANSWER = 256


def candidates(job: int, step: int) -> tuple[int, ...]:
    """The ports at which the ranks of a step look for each other; other steps of a job begin elsewhere."""
    return tuple(20000 + (job + 97 * step + place) % 10000 for place in range(PORTS))


def host(ports: Sequence[int], meeting: str, size: int, timeout: datetime.timedelta) -> dist.TCPStore:
    """Rank 0's store, announced to the other ranks; raises LaunchError when none of `ports` is free."""
    server, refusals = None, []
    for port in ports:
        try:
            server = _listen(port)
            break
        except OSError as error:
            refusals.append(f"{port}: {error.strerror or error}")
    if server is None:
        raise LaunchError(
            f"rank 0 cannot listen on port {'; '.join(refusals)}. Another program has it: export MASTER_PORT with a "
            "port that is free on the first node."
        )
    store = dist.TCPStore("localhost", 0, None, True, timeout=timeout, wait_for_workers=False)
    answer = _answer(meeting, store.port)
    threading.Thread(target=_announce, args=(server, answer, size - 1), name="rendezvous", daemon=True).start()
    return store


def find(address: str, ports: Sequence[int], meeting: str, timeout: datetime.timedelta) -> dist.TCPStore:
    """The store that rank 0 announces at one of `ports`.

    Raises LaunchError when others answer at all of them, so that rank 0 cannot be there, and after the time-out.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    while True:
        strangers = []
        for port in ports:
            try:
                found = _ask(address, port, meeting)
            except OSError:  # nobody is there, or not yet
                continue
            if found:
                return dist.TCPStore(address, found, None, False, timeout=timeout, wait_for_workers=False)
            strangers.append(port)
        if len(strangers) == len(ports):
            raise LaunchError(
                f"another program answers at {address} on port {', '.join(map(str, ports))}, where this rank looked "
                "for rank 0. Export MASTER_PORT with a port that is free on the first node."
            )
        if time.monotonic() > deadline:
            raise LaunchError(
                f"rank 0 was not found at {address} on port {', '.join(map(str, ports))} within "
                f"{timeout.total_seconds():g} s. Did it start, and can this node reach that one?"
            )
        time.sleep(RETRY_SECONDS)


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _answer(meeting: str, port: int | str) -> bytes:
    return f"upscale {meeting} {port}\n".encode()


def _announce(server: socket.socket, answer: bytes, others: int) -> None:
    """Answer until every other rank has asked; who was no rank costs nothing but its own answer."""
    asked = 0
    with server:
        while asked < others:
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(ANSWER_SECONDS)
                    connection.sendall(answer)
                    asked += connection.recv(1) == b"\n"


def _ask(address: str, port: int, meeting: str) -> int | None:
    """The port of rank 0's store; None where another program listens. Raises OSError where nobody does."""
    with socket.create_connection((address, port), timeout=ANSWER_SECONDS) as connection:
        said = b""
        deadline = time.monotonic() + ANSWER_SECONDS
        with contextlib.suppress(OSError):
            while not said.endswith(b"\n") and len(said) < LONGEST_ANSWER and time.monotonic() < deadline:
                part = connection.recv(LONGEST_ANSWER)
                if not part:
                    break
                said += part
        prefix = _answer(meeting, "").rstrip(b"\n")
        if not (said.startswith(prefix) and said.endswith(b"\n")):
            return None
        connection.sendall(b"\n")
        return int(said[len(prefix) :])
