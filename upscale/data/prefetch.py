"""Rows drawn one step ahead: while a step trains on the rows of one draw, the next is under way beside it.

Beside it means in a thread, on a GPU with a stream of its own (`thread`), or in processes that divide the lanes among
them as ranks do (`workers`). The rows are the same bits as without, and so is what is saved: `state` is the state
before whatever was drawn ahead, which is drawn again after a resume, or undone when another number of rows is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext

import torch

from upscale.config import AUTO, Config
from upscale.data.training_rows import RestorableRows, Rows, SnapshotRows
from upscale.data.worker_pool import Workers
from upscale.machine import cores
from upscale.machine.timing import Stopwatch


class Prefetcher:
    """Rows, drawn ahead in one thread where the next number of rows is told.

    On a GPU the thread works on a stream of its own, which starts after everything that was queued when the draw was
    asked for and which the caller's stream waits for when it takes the rows. What goes wrong in the thread is raised by
    the draw that takes its rows.
    """

    def __init__(self, rows: RestorableRows, device: torch.device) -> None:
        self.lanes, self.method, self.device = rows.lanes, rows.method, device
        self._rows = rows
        self._thread = ThreadPoolExecutor(1, "rows", _use, (device,))
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._asked: tuple[int, Future] | None = None
        self._watches: list[Stopwatch] = []
        self._origins = torch.empty(0, dtype=torch.uint8)

    def draw(self, rows_per_lane: int, following: int | None = None) -> torch.Tensor:
        """The next rows; `following` is how many rows a lane the next draw will want, None if there will be none."""
        if self._asked and self._asked[0] != rows_per_lane:
            self._undo()
        _, future = self._asked or self._ask(rows_per_lane)
        self._asked = None
        rows, self._origins, watch, done = future.result()
        self._watches.append(watch)
        if self._stream:
            torch.cuda.current_stream(self.device).wait_event(done)
            for tensor in (rows, self._origins):
                tensor.record_stream(torch.cuda.current_stream(self.device))
        if following:
            self._ask(following)
        return rows

    def origins(self) -> torch.Tensor:
        return self._origins

    def state(self) -> dict[str, torch.Tensor]:
        """The state before what was drawn ahead; waits for that draw, whether or not it succeeds."""
        if not self._asked:
            return self._rows.state()
        wait([self._asked[1]])
        state = self._rows.snapshot()
        if self._stream:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._stream)
            for tensor in state.values():
                if tensor.is_cuda:
                    tensor.record_stream(current)
        return state

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        if self._asked:
            self.state()
            self._asked = None
        self._rows.load_state(state)

    def take_seconds(self) -> float:
        """How long the draws took that gave the rows since the last call, beside the steps or not."""
        seconds = sum(watch.take() for watch in self._watches)
        self._watches.clear()
        return seconds

    def close(self) -> None:
        """Wait for a draw under way and end the thread, and the workers if there are any."""
        self._thread.shutdown()
        self._rows.close()

    def _undo(self) -> None:
        self.load_state(self.state())

    def _ask(self, rows_per_lane: int) -> tuple[int, Future]:
        before = torch.cuda.current_stream(self.device).record_event() if self._stream else None
        self._asked = rows_per_lane, self._thread.submit(self._draw, rows_per_lane, before)
        return self._asked

    def _draw(
        self, rows_per_lane: int, before: torch.cuda.Event | None
    ) -> tuple[torch.Tensor, torch.Tensor, Stopwatch, torch.cuda.Event | None]:
        watch = Stopwatch(self.device)
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            if self._stream:
                self._stream.wait_event(before)
            self._rows.take_snapshot()
            with watch.running():
                # CUDA has taken pageable memory before such a copy returns.
                rows = self._rows.draw(rows_per_lane).to(self.device, non_blocking=True)
            origins = self._rows.origins().to(self.device, non_blocking=True)
            return rows, origins, watch, self._stream.record_event() if self._stream else None


def _use(device: torch.device) -> None:
    """Make a GPU the thread's own: a new thread starts on GPU 0, where it would make a context of some 0.5 GB."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


class NoPrefetch:
    """Rows drawn when they are wanted, with the interface of `Prefetcher`."""

    def __init__(self, rows: Rows, device: torch.device) -> None:
        self.lanes, self.method = rows.lanes, rows.method
        self.origins, self.state, self.load_state = rows.origins, rows.state, rows.load_state
        self._draw, self._watch = rows.draw, Stopwatch(device)

    def draw(self, rows_per_lane: int, following: int | None = None) -> torch.Tensor:
        with self._watch.running():
            return self._draw(rows_per_lane)

    def take_seconds(self) -> float:
        return self._watch.take()

    def close(self) -> None:
        return


def prefetched(
    config: Config,
    rows: Callable[[Sequence[int], torch.device | str], Rows],
    lanes: Sequence[int],
    device: torch.device,
) -> Prefetcher | NoPrefetch:
    """The rows of some lanes, drawn as `data.ahead` says; `rows` makes them of lanes and a device."""
    mode, _ = way(config, device)
    if mode == "none":
        return NoPrefetch(rows(lanes, device), device)
    if mode == "thread":
        return Prefetcher(SnapshotRows(rows(lanes, device)), device)
    count = spare_cores(device) if config.data.workers == AUTO else config.data.workers
    return Prefetcher(Workers(rows, lanes, count), device)


def way(config: Config, device: torch.device) -> tuple[str, str | None]:
    """`none`, `thread` or `workers`, the same on every rank of one kind, and a line to log where it is unexpected.

    auto is a thread with a GPU, which trains meanwhile, and none without, where both would want the same cores. Workers
    write where a source would launch thousands of small kernels for a draw: they would wait for the training's in the
    GPU's queues, and the thread that launches them holds the interpreter that launches the training's.
    """
    if config.data.ahead != AUTO:
        return config.data.ahead, None
    if device.type != "cuda":
        return "none", None
    used = [source for source in config.data.sources if source.weight] if config.data.kind == "synthetic" else []
    slow = sorted({source.kind for source in used if source.launches_many(config.model)})
    if not slow:
        return "thread", None
    return "workers", (
        f"rows are written by processes on the CPU (data.ahead=auto), because {' and '.join(slow)} would launch "
        "thousands of small kernels on the GPU for every step; data.ahead=thread writes them there all the same"
    )


def spare_cores(device: torch.device) -> int:
    """This rank's share of the cores, but one, and at least one; on a CPU training takes the threads that it has."""
    own = torch.get_num_threads() if device.type == "cpu" else cores.of_this_rank()
    return max(1, own - 1)
