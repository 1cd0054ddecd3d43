"""A throw-away real Slurm on one machine: slurmctld, munged, and nodes that can be killed, cut off and revived.

Every node is a network, process, host-name and mount namespace with its own slurmd, so killing it ends all that runs
on it at once, as a power failure does, and taking its interface down is an unplugged cable. All nodes hang on a bridge
in a network namespace that only this cluster has: nothing reaches the machine's own network, and two clusters cannot
collide. Every daemon dies with the process that started it (`setpriv --pdeathsig`), and the namespaces, links and
mounts with the daemons.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.pace import Deadline

COMMANDS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "unshare", "nsenter", "setpriv")
NETWORK = "10.231.0"
BOOT_SECONDS = 60
# Generous, because nothing asserts on seconds.
WAIT_SECONDS = 400
# What Slurm takes for a failure, in seconds on a free machine. A slower one gets as many times more as it is slower:
# a node that does not answer because all cores are busy is not dead.
TIME_OUTS = {
    "SlurmdTimeout": 6,
    "MessageTimeout": 10,
    "TCPTimeout": 2,
    "BatchStartTimeout": 30,
    "KillWait": 20,
    # Shorter, and a node whose cable was cut is drained when it comes back, because its step still retries.
    "UnkillableStepTimeout": 120,
}
GRACE_SECONDS = 20
USER = "games"
"""Somebody without rights whom every system knows, with a home folder that he may not write to."""

SLURM_CONF = """
ClusterName=test
SlurmctldHost=controller({network}.1)
CommunicationParameters=NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits for cred_expire + 1 s before it starts again; the default is two minutes, below 5 is ignored.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
PriorityType=priority/basic
{time_outs}
CompleteWait=0
# The only source of a job's final state without slurmdbd, so it must outlive the test.
MinJobAge=3600
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# Two cores may pose as several nodes.
SlurmdParameters=config_overrides
{gres_types}
NodeName=DEFAULT CPUs=4 RealMemory=16000{gres} State=UNKNOWN
{nodes}
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime={grace_seconds}
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""

# Process 1 of a node.
NODE_SCRIPT = """
folder=$1 node=$2 address=$3
hostname "$node"
until ip link show "$node" >/dev/null 2>&1; do sleep 0.02; done
ip link set lo up
ip link set "$node" name eth0
ip address add "$address/24" dev eth0
ip link set eth0 up
mount --make-rprivate /
mount --bind "$folder/hosts" /etc/hosts
mount -t tmpfs -o mode=1777 shm /dev/shm
ulimit -c 0
slurmd -D -f "$folder/slurm.conf" -N "$node" &
while :; do wait -n || sleep 1; done
"""

CONTROLLER_SCRIPT = """
hostname controller
mount --make-rprivate /
mount --bind "$1/hosts" /etc/hosts
exec slurmctld -D -i -f "$1/slurm.conf"
"""


def why_not() -> str | None:
    """Why no cluster can run here, or None."""
    if os.geteuid() != 0:
        return "a test cluster needs root"
    missing = [command for command in COMMANDS if not shutil.which(command, path=_path())]
    if missing:
        return f"{', '.join(missing)} not found; on Debian: apt-get install slurm-wlm munge iproute2"
    trial = subprocess.run(["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "true"], capture_output=True)
    return "this machine allows no namespaces" if trial.returncode else None


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def wait_until(condition: Callable[[], object], what: str | Callable[[], str], seconds: float = WAIT_SECONDS):
    """The first true value of `condition`; AssertionError saying `what` did not happen."""
    deadline = Deadline(seconds)
    while True:
        if value := condition():
            return value
        if deadline.passed():
            raise AssertionError(f"not within {seconds:g} s: {what() if callable(what) else what}")
        time.sleep(0.2)


class Cluster:
    """`nodes` nodes n1, n2, ... with `gpus` device files each that pose as GPUs.

    `pace` is how many times slower than free the machine is (tests/pace.py); time-outs are that much longer.
    """

    def __init__(self, folder: Path, pace: float, nodes: int = 3, gpus: int = 2):
        self.folder, self.pace, self.gpus = folder, pace, gpus
        self.nodes = [f"n{index}" for index in range(1, nodes + 1)]
        self.processes: dict[str, subprocess.Popen] = {}
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))},
            "PATH": _path(),
            "SLURM_CONF": str(folder / "slurm.conf"),
        }

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_error) -> None:
        self.stop()

    def seconds(self, on_a_free_machine: float) -> int:
        """As many seconds as this machine may need for what takes so many on a free one."""
        return math.ceil(on_a_free_machine * self.pace)

    # ---- daemons

    def _start(self) -> None:
        self.folder.chmod(0o755)  # users reach munge's socket
        for name in ("log", "state", "spool", "devices"):
            (self.folder / name).mkdir()
        self._write_files()
        self._daemon("network", "unshare", "--net", "sleep", "infinity")
        self._wait_for_own_network("network")
        for command in (
            "link set lo up",
            "link add bridge type bridge",
            f"address add {NETWORK}.1/24 dev bridge",
            "link set bridge up",
        ):
            self.inside("ip", *command.split())
        folder = str(self.folder)
        munged = ["munged", "--foreground", "--force", f"--key-file={folder}/munge.key"]
        munged += [f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid"]
        munged += [f"--log-file={folder}/log/munged.log", f"--seed-file={folder}/munge.seed", "--num-threads=2"]
        self._daemon("munged", *munged)
        wait_until((self.folder / "munge.socket").is_socket, lambda: f"munged: {self.logs()}", BOOT_SECONDS)
        self.start_controller()
        for node in self.nodes:
            self._boot(node)
        wait_until(self.all_idle, lambda: f"all nodes idle:\n{self.logs()}", BOOT_SECONDS)

    def start_controller(self) -> None:
        network = f"--net=/proc/{self.processes['network'].pid}/ns/net"
        controller = ["unshare", "--uts", "--mount", "bash", "-c", CONTROLLER_SCRIPT, "controller", str(self.folder)]
        self._daemon("slurmctld", "nsenter", network, *controller)
        wait_until(lambda: "is UP" in self.inside("scontrol", "ping", check=False), self.logs, BOOT_SECONDS)

    def stop_controller(self) -> None:
        process = self.processes.pop("slurmctld")
        process.terminate()
        process.wait(self.seconds(WAIT_SECONDS))

    def _write_files(self) -> None:
        addresses = {node: f"{NETWORK}.{10 + index}" for index, node in enumerate(self.nodes, 1)}
        lines = [f"NodeName={node} NodeAddr={address}" for node, address in addresses.items()]
        content = SLURM_CONF.format(
            network=NETWORK,
            folder=self.folder,
            gres_types="GresTypes=gpu" if self.gpus else "",
            gres=f" Gres=gpu:{self.gpus}" if self.gpus else "",
            nodes="\n".join(lines),
            time_outs="\n".join(f"{name}={self.seconds(value)}" for name, value in TIME_OUTS.items()),
            grace_seconds=self.seconds(GRACE_SECONDS),
        )
        (self.folder / "slurm.conf").write_text(content)
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # unused; silences a search for cgroups
        for index in range(self.gpus):  # slurmd wants devices: clones of /dev/null do
            subprocess.run(["mknod", self.folder / "devices" / f"gpu{index}", "c", "1", "3"], check=True)
        if self.gpus:
            (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/devices/gpu[0-{self.gpus - 1}]\n")
        hosts = ["127.0.0.1 localhost", f"{NETWORK}.1 controller", *(f"{a} {n}" for n, a in addresses.items())]
        (self.folder / "hosts").write_text("\n".join(hosts) + "\n")
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))

    def _daemon(self, name: str, *command: str) -> None:
        with open(self.folder / "log" / f"{name}.out", "ab") as output:
            self.processes[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.environment,
                start_new_session=True,
            )

    def _wait_for_own_network(self, name: str) -> None:
        process, ours = self.processes[name], os.readlink("/proc/self/ns/net")

        def has_left() -> bool:
            assert process.poll() is None, f"{name} ended with {process.returncode}: {self.logs()}"
            return os.readlink(f"/proc/{process.pid}/ns/net") != ours

        wait_until(has_left, f"{name} in its own network namespace", BOOT_SECONDS)

    def _boot(self, node: str) -> None:
        index = int(node[1:])
        spaces = "--net --uts --mount --pid --fork --kill-child --mount-proc".split()
        script = ["bash", "-c", NODE_SCRIPT, node, str(self.folder), node, f"{NETWORK}.{10 + index}"]
        self._daemon(node, "unshare", *spaces, *script)
        self._wait_for_own_network(node)
        self.inside("ip", "link", "add", f"cable{index}", "type", "veth", "peer", "name", node)
        self.inside("ip", "link", "set", node, "netns", str(self.processes[node].pid))
        self.inside("ip", "link", "set", f"cable{index}", "master", "bridge", "up")

    def stop(self) -> None:
        """End every daemon, nodes first; their namespaces, links and mounts go with them."""
        for name in reversed(list(self.processes)):
            process = self.processes.pop(name)
            process.kill()
            process.wait()

    def logs(self) -> str:
        """The last lines of every daemon's log, for messages."""
        paths = sorted((self.folder / "log").iterdir())
        return "\n".join(f"-- {path.name}\n" + "\n".join(path.read_text().splitlines()[-8:]) for path in paths)

    # ---- faults

    def kill(self, node: str) -> None:
        """The node loses power: slurmd and every process on it are gone at once."""
        process = self.processes.pop(node)
        process.kill()
        process.wait()

    def cut(self, node: str) -> None:
        """Unplug the node's network cable; its processes live on."""
        self.inside("ip", "link", "set", f"cable{node[1:]}", "down")

    def plug(self, node: str) -> None:
        self.inside("ip", "link", "set", f"cable{node[1:]}", "up")

    def revive(self, node: str) -> None:
        """Boot a killed node again, once Slurm has seen that it was gone: before, its jobs would hang on it."""
        wait_until(lambda: self.node_state(node).startswith("down"), f"{node} down")
        # The kernel takes a killed node's end of the cable away in its own time, and our end with it.
        wait_until(lambda: not self._has_cable(node), f"the old cable of {node} gone")
        self._boot(node)

    def _has_cable(self, node: str) -> bool:
        return f"cable{node[1:]}@" in self.inside("ip", "-oneline", "link")

    def heal(self) -> None:
        """Cancel every job, bring the controller and every node back, and wait until all are idle."""
        if "slurmctld" not in self.processes:
            self.start_controller()
        for user in ("root", USER):
            self.inside("scancel", "--full", "--signal=KILL", f"--user={user}", check=False)
            self.inside("scancel", f"--user={user}", check=False)
        for node in self.nodes:
            if node not in self.processes:
                self.inside("scontrol", "update", f"nodename={node}", "state=down", "reason=killed")
                self.revive(node)
            else:
                self.plug(node)

        def ready() -> bool:
            for node in self.nodes:
                if self.node_state(node).startswith("drain"):
                    self.inside("scontrol", "update", f"nodename={node}", "state=resume", check=False)
            return self.all_idle() and not self.inside("squeue", "--noheader")

        wait_until(ready, lambda: f"all idle:\n{self.inside('sinfo', '-N')}\n{self.inside('squeue')}")

    def enter(self, node: str, folder: Path | str = "/") -> list[str]:
        """Words before a command that run it on a node in a folder, without Slurm."""
        pid = self.processes[node].pid
        first = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
        # With another mount namespace comes its root as the current folder.
        change = ["env", f"--chdir={folder}"]
        return ["nsenter", f"--target={first}", "--net", "--uts", "--mount", "--pid", *change]

    # ---- what a user does

    def inside(self, *command: str, check: bool = True, environment: dict[str, str] | None = None, cwd=None) -> str:
        """Run a command in the cluster's network; its output. AssertionError when it fails, unless `check` is false."""
        done = subprocess.run(
            ["nsenter", f"--net=/proc/{self.processes['network'].pid}/ns/net", *map(str, command)],
            env={**self.environment, **(environment or {})},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=self.seconds(WAIT_SECONDS),
        )
        if check and done.returncode:
            raise AssertionError(f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout if check else done.stdout + done.stderr

    def all_idle(self) -> bool:
        return all(self.node_state(node) == "idle" for node in self.nodes)

    def node_state(self, node: str) -> str:
        return self.inside("sinfo", "-h", "-n", node, "-p", "batch", "-o", "%T", check=False).strip()

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says, as key -> value."""
        shown = self.inside("scontrol", "--oneliner", "show", "job", job)
        return dict(re.findall(r"(\S+?)=(\S*)", shown))

    def state(self, job: str) -> str:
        return self.job(job)["JobState"]

    def wait(self, job: str, *states: str) -> dict[str, str]:
        """Wait until the job is in one of the states, or in any final one."""
        final = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        wait_until(lambda: self.state(job) in (*states, *final), lambda: f"{states or 'the end'}: {self.job(job)}")
        return self.job(job)
