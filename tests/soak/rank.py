"""`upscale/train.py`, but every row that a lane gives is remembered: a line "round lane digest" in $SOAK_ROWS.

The file's name is the port of the rank's world and its process id.
"""

import hashlib
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from upscale import train
    from upscale.console import command
    from upscale.data import lanes

    draw = lanes.Lanes.draw
    file = open(Path(os.environ["SOAK_ROWS"], f"{os.environ['MASTER_PORT']}-{os.getpid()}"), "a")  # noqa: SIM115

    def draw_and_remember(self, rows_per_lane):
        rows = draw(self, rows_per_lane)
        for lane, part, round_ in zip(self.lanes, rows.chunk(len(self.lanes)), self.rounds.tolist(), strict=True):
            file.write(f"{round_} {lane} {hashlib.blake2b(part.numpy().tobytes(), digest_size=8).hexdigest()}\n")
        file.flush()
        return rows

    lanes.Lanes.draw = draw_and_remember
    command.run(train.main)
