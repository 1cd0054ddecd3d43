"""A rank without torch that behaves towards Slurm as the real trainer does, for tests of the scheduling logic.

It meets the other ranks at MASTER_ADDR:MASTER_PORT, agrees with them at each step on whether to stop (exit code 75
after saving), leaves with 1 when one of them is lost, continues from the newest checkpoint, and writes the run
directory's files in their real form. Checked against the trainer itself by the tests that run both.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time
from pathlib import Path

if __name__ == "__main__":  # before what takes time
    from upscale.launch import signals

    signals.remember_stop_requests()

from upscale.checkpoint import layout, manifest
from upscale.cli import status
from upscale.files import dump_yaml, parse_yaml, write_atomically
from upscale.launch import signals

PEER_SECONDS = float(os.environ.get("STANDIN_PEER_SECONDS", "8"))
MEETING_SECONDS = float(os.environ.get("STANDIN_MEETING_SECONDS", "60"))
STEP_SECONDS = 0.1
if os.environ.get("SLURM_RESTART_COUNT", "0") != "0":  # what is left may go faster
    STEP_SECONDS = float(os.environ.get("STANDIN_STEP_SECONDS_AFTER_A_RESTART", STEP_SECONDS))
SILENCE_SECONDS = os.environ.get("STANDIN_SILENCE_SECONDS", "600")
SAVE_SECONDS = float(os.environ.get("STANDIN_SAVE_SECONDS", "0"))
# Stands for the config file of a fine-tuning.
FINETUNING = "schedule.instances=3 schedule.batch.start=1 schedule.batch.end=1 checkpoint.milestones=0".split()


class Ranks:
    """One flag a step, combined by rank 0 over plain sockets."""

    def __init__(self):
        self.rank, self.size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_STEP_NUM_TASKS"])
        assert self.size == int(os.environ["WORLD_SIZE"]), "the world differs from the allocation"
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        if self.rank == 0:
            with socket.create_server(("", address[1])) as server:
                server.settimeout(MEETING_SECONDS)
                self.peers = [server.accept()[0] for _ in range(self.size - 1)]
        else:
            self.peers = [self._connect(address)]
        for peer in self.peers:
            peer.settimeout(PEER_SECONDS)

    def _connect(self, address: tuple[str, int]) -> socket.socket:
        deadline = time.monotonic() + MEETING_SECONDS
        while True:
            try:
                return socket.create_connection(address, timeout=5)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def any(self, flag: bool) -> bool:
        if self.rank:
            self.peers[0].sendall(struct.pack("?", flag))
            return self._receive(self.peers[0])
        combined = any([flag, *map(self._receive, self.peers)])
        for peer in self.peers:
            peer.sendall(struct.pack("?", combined))
        return combined

    def _receive(self, peer: socket.socket) -> bool:
        data = peer.recv(1)
        if not data:
            raise ConnectionError("a rank is gone")
        return struct.unpack("?", data)[0]


def train(arguments: list[str]) -> int:
    overrides = [argument for argument in arguments if "=" in argument]
    if any(text.startswith("init.") for text in overrides):
        overrides = [text for text in overrides if not text.startswith("init.")] + FINETUNING
    config = config_of(overrides)
    directory = Path(config["run"]["dir"])
    try:
        return steps(config, directory, Ranks())
    except OSError as error:
        print(f"error: rank {os.environ['SLURM_PROCID']}: a rank died or hangs ({error})", file=sys.stderr, flush=True)
        return 1


def config_of(overrides: list[str]) -> dict:
    """The keys of a config that a rank writes or obeys here; the real reader would import torch."""
    config: dict = {"run": {"name": "run", "dir": None, "steps": None}, "schedule": {}}
    config["checkpoint"] = {"every_steps": 5, "milestones": 5_000_000}
    for override in overrides:
        key, _, value = override.partition("=")
        *sections, name = key.split(".")
        place = config
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = parse_yaml(value)
    config["run"]["dir"] = config["run"]["dir"] or f"runs/{config['run']['name']}"
    return config


def steps(config: dict, directory: Path, ranks: Ranks) -> int:
    folder = directory / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    saved = [
        step for step in manifest.steps(folder) if (manifest.step_folder(folder, step) / manifest.MANIFEST).exists()
    ]
    batch, instances = config["schedule"]["batch"]["start"], config["schedule"]["instances"]
    step, every = max(saved, default=0), config["checkpoint"]["every_steps"]
    milestones = config["checkpoint"]["milestones"]
    heartbeat = Path(os.environ["UPSCALE_HEARTBEAT"])
    heartbeat.write_text(SILENCE_SECONDS)
    if ranks.rank == 0:
        write_atomically(directory / layout.CONFIG, dump_yaml(config).encode())
        print(f"world of {ranks.size} from step {step}", flush=True)
    while True:
        time.sleep(STEP_SECONDS)
        heartbeat.touch()
        before, step = step * batch, step + 1
        if fail_at := os.environ.get("STANDIN_FAIL_AT"):
            assert step < int(fail_at) or ranks.rank != ranks.size - 1, "this rank was told to fail"
        stopping, finished = ranks.any(bool(signals.requested)), step * batch >= instances
        milestone = bool(milestones) and step * batch // milestones > before // milestones
        if ranks.rank == 0:
            log(directory, step, step * batch, ranks.size)
            if stopping or finished or milestone or step % every == 0:
                time.sleep(SAVE_SECONDS * stopping)
                save(folder, config, step, step * batch, milestone, ranks.size)
        if stopping or finished:
            ranks.any(False)
            return 75 if stopping else 0


def log(directory: Path, step: int, instances: int, size: int) -> None:
    record = {"step": step, "instances": instances, "loss_bits_per_byte": 8 / step, "global_batch": 1}
    record |= {"step_seconds": STEP_SECONDS, "world_size": size, "job": os.environ["SLURM_JOB_ID"]}
    record |= {"restart": int(os.environ.get("SLURM_RESTART_COUNT", "0"))}
    with open(directory / "metrics.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")


def save(folder: Path, config: dict, step: int, instances: int, milestone: bool, size: int) -> None:
    path = manifest.step_folder(folder, step)
    path.mkdir(exist_ok=True)
    content = {"step": step, "counters": {"step": step, "instances": instances}, "milestone": milestone}
    content |= {"world_size": size, "files": {}, "pieces": {}, "lanes": {}}
    manifest.write(path, {**content, "config": config})


def main() -> int:
    verb, *arguments = sys.argv[1:]
    if verb == "train":
        return train(arguments)
    if verb == "status":
        return status.main(arguments)
    if os.environ["SLURM_PROCID"] == "0":
        print(f"{verb} {' '.join(arguments)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
