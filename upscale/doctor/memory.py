"""Memory: what the config's plan wants of each rank against what is free."""

from __future__ import annotations

import torch

from upscale.bench.fitting import free_bytes
from upscale.config import AUTO
from upscale.doctor.base import Check, Record, Session
from upscale.planning import memory

LESS = "Use more ranks, model.checkpointing=full or a higher engine.zero_stage; `upscale plan` lists every way"


class Memory(Check):
    kind = "memory"

    def measure(self, session: Session) -> list[Record]:
        config, ranks = session.config, session.world.size
        if session.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(session.device)
            taken = total - free - torch.cuda.memory_reserved(session.device)
        else:
            free = free_bytes() / len(session.ranks_of_nodes[session.node])
            taken = 0
        states = sum(memory.state_bytes(config, ranks).values())
        rows = memory.largest_micro_batch(config, ranks, free)
        wanted = 1 if config.engine.micro_batch == AUTO else config.engine.micro_batch
        problem = None
        if rows < wanted:
            found = (
                f"{states / 2**30:.2f} GiB of weights, moments and gradients leave room for {max(rows, 0)} rows a pass"
            )
            problem = f"{found} and engine.micro_batch asks for {wanted}. {LESS}"
        others = None
        if taken > 0.1 * free:
            others = "Another process holds memory of this GPU: `nvidia-smi` names it; end it, or leave the GPU out"
        return [
            self.record(session, "free for a rank", free / 2**30, "GiB", others),
            self.record(session, "planned states", states / 2**30, "GiB"),
            self.record(session, "rows a pass that fit", float(rows), "rows", problem),
            *self._lanes(session),
        ]

    def _lanes(self, session: Session) -> list[Record]:
        lanes, ranks = session.config.data.lanes, session.world.size
        if not session.world.is_main:
            return []
        problem = None
        if ranks > lanes:
            problem = f"{ranks} ranks cannot share them: start at most {lanes} ranks, or set data.lanes={ranks} or more"
        return [self.record(session, "data.lanes", float(lanes), "lanes", problem)]
