"""Ports: whether the nodes reach each other on ports that the kernel hands out, as gloo and NCCL need."""

from __future__ import annotations

import os
import socket

from upscale.doctor.base import Check, Record, Session

CONNECT_SECONDS = 5.0
MOST_NODES_ASKED = 8
"""Each node connects to so many that follow it, in a ring: on many nodes not to all."""


class Ports(Check):
    kind = "ports"

    def measure(self, session: Session) -> list[Record]:
        if not session.leads_its_node:
            session.world.gather_objects(None)
            session.world.barrier()
            return []
        with socket.create_server(("", 0), backlog=2 * MOST_NODES_ASKED) as server:
            own = session.node, own_address(), server.getsockname()[1]
            leaders = [place for place in session.world.gather_objects(own) if place]
            here = leaders.index(own)
            others = [leaders[(here + step) % len(leaders)] for step in range(1, len(leaders))][:MOST_NODES_ASKED]
            failures = [text for place in others or [own] if (text := refusal(*place))]
            session.world.barrier()  # nobody closes while another still asks
        problem = None
        if failures:
            problem = (
                f"cannot connect to {'; '.join(failures)}. Open all ports between the nodes, or name the network that "
                "they share (GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME in slurm/site.env)"
            )
        asked = len(others or [own])
        return [self.record(session, "nodes reached", float(asked - len(failures)), f"of {asked}", problem)]


def own_address() -> str:
    """This node's address on the network to the first rank; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((os.environ.get("MASTER_ADDR") or "127.0.0.1", 9))
        except OSError:
            return socket.gethostname()
        return probe.getsockname()[0]


def refusal(node: str, address: str, port: int) -> str | None:
    """Why a connection fails, None if it does not."""
    try:
        socket.create_connection((address, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        return f"{node} ({address}:{port}: {error.strerror or error})"
    return None
