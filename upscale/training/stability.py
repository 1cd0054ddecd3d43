"""What shows early that a model is about to diverge: attention logits, activations and gates, block by block.

Wortsman et al. 2023 (Small-scale proxies for large-scale transformer training instabilities) find that growing
attention logits and a drifting softmax denominator announce it; `model.qk_norm` and `optimizer.z_loss` are remedies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack, contextmanager

import torch

from upscale.distributed.world import World
from upscale.model.transformer import ProgressiveBlock, Transformer, inside

ROWS = 2


class Observer:
    """Looks into a model while it predicts a few rows, without gradients and with compiled blocks run as they are
    written; between two looks nothing is attached to the model."""

    def __init__(self, model: Transformer):
        self.blocks = list(model.blocks)

    @torch.no_grad()
    def observe(
        self, logits: Callable[[torch.Tensor, int], torch.Tensor], rows: torch.Tensor, active: int, world: World
    ) -> dict[str, float | list[float]]:
        """Fields of metrics.jsonl, the same on every rank; each rank passes at least one row (rows, context + 1).

        `attention_logit_maximum` is the largest scaled product of a query and an earlier key, `activation_rms` the root
        mean square of what leaves a block, `log_partition_rms` that of log sum exp of the output logits: over ranks and
        the first ROWS rows of each, the first two with a list of one number per active block beside their largest.
        `gates` are those of the active progressive blocks.
        """
        with torch.compiler.set_stance("force_eager"), self._watched(active) as seen:
            output = logits(rows[:ROWS, :-1], active)
        largest, squares = torch.stack(seen["largest"]), torch.stack(seen["squares"])
        partition = output.float().logsumexp(-1).square().mean()
        mine = torch.cat([largest, squares, partition[None], *seen["gates"]]).tolist()  # the one wait for the device
        everyone = world.gather_objects(mine)
        columns = list(zip(*everyone, strict=True))
        logit = [max(column) for column in columns[:active]]
        activation = [_root_mean(column) for column in columns[active : 2 * active]]
        return {
            "attention_logit_maximum": max(logit),
            "attention_logit_maximum_per_block": logit,
            "activation_rms": max(activation),
            "activation_rms_per_block": activation,
            "log_partition_rms": _root_mean(columns[2 * active]),
            "gates": mine[2 * active + 1 :],
        }

    @contextmanager
    def _watched(self, active: int):
        """Lists that fill, block by block, in the next forward pass."""
        seen: dict[str, list[torch.Tensor]] = {"largest": [], "squares": [], "gates": []}
        with ExitStack() as stack:
            for block in self.blocks[:active]:
                inner = inside(block)
                query: list[torch.Tensor] = []
                attention = inner.attention
                query_end, key_end = attention.ends
                for module, hook in (
                    (query_end, lambda _m, _i, output, query=query: query.append(output)),
                    (
                        key_end,
                        lambda _m, _i, output, query=query, scale=attention.scale: seen["largest"].append(
                            largest_logit(query.pop(), output, scale)
                        ),
                    ),
                    (block, lambda _m, _i, output: seen["squares"].append(output.float().square().mean())),
                ):
                    stack.callback(module.register_forward_hook(hook).remove)
                if isinstance(block, ProgressiveBlock):
                    # Inside the outer block's forward, where a sharded gate is whole.
                    handle = inner.register_forward_hook(
                        lambda _m, _i, _o, block=block: seen["gates"].append(block.gate.detach().float().clone())
                    )
                    stack.callback(handle.remove)
            yield seen


def largest_logit(query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
    """The largest causal attention logit, a scalar, from queries and keys (rows, heads, positions, head size)."""
    with torch.autocast(query.device.type, enabled=False):
        scores = query.float() @ key.float().transpose(-2, -1) * scale
    allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    return scores.masked_fill(~allowed, -math.inf).amax()


def _root_mean(squares: tuple[float, ...]) -> float:
    return math.sqrt(sum(squares) / len(squares))
