"""`tracking.profile`: what the machine does in a window of steps, as torch's profiler sees it.

Each rank writes RUNDIR/profile/steps-FIRST-LAST.rankN.json.gz, a Chrome trace for https://ui.perfetto.dev or
chrome://tracing, and on a GPU beside it a .pickle of every allocation for https://pytorch.org/memory_viz. Nothing that
is computed changes. A run that ends or resumes within the window writes the part that it trained, under the numbers of
those steps.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from upscale.config import ProfileConfig
from upscale.distributed.world import World

FOLDER = "profile"
MEMORY_EVENTS = 1_000_000


class Profiler:
    """Watches the steps of the window; without one every method does nothing."""

    def __init__(self, settings: ProfileConfig | None, directory: Path, world: World):
        self.settings, self.folder, self.world = settings, directory / FOLDER, world
        self.running: profile | None = None
        self.first = 0

    def begin(self, step: int) -> None:
        """Called before the step of this number, counting from 1."""
        if self.running or not self.settings or not self._holds(step):
            return
        self.first = step
        activities = [ProfilerActivity.CPU]
        if self.world.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=MEMORY_EVENTS)
        self.running = profile(activities=activities, record_shapes=True, profile_memory=True)
        self.running.start()

    def end(self, step: int, leaving: bool) -> str | None:
        """Called after it; writes when the window ends here or the run does, and returns what to tell the user."""
        if not self.running or (self._holds(step + 1) and not leaving):
            return None
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)
        self.running.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"steps-{self.first:08d}-{step:08d}.rank{self.world.rank}"
        # Written beside and moved, as every file of a run; torch itself chooses gzip by the name's end.
        temporary = self.folder / f".{name}.json.gz"
        self.running.export_chrome_trace(str(temporary))
        os.replace(temporary, self.folder / f"{name}.json.gz")
        if self.world.device.type == "cuda":
            temporary = self.folder / f".{name}.pickle"
            torch.cuda.memory._dump_snapshot(str(temporary))
            torch.cuda.memory._record_memory_history(enabled=None)
            os.replace(temporary, self.folder / f"{name}.pickle")
        self.running = None
        return f"profile of steps {self.first} to {step}: {self.folder / name}.json.gz, the other ranks' beside it"

    def _holds(self, step: int) -> bool:
        window = self.settings
        return window is not None and window.start <= step < window.start + window.steps
