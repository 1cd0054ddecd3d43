"""Generator: whether random streams and sources give on each device what the reference gives, and equal rows anywhere.

The reference of a source is its eager path on the CPU. Two ways of a recurrent source part at a near tie, so its rows
are compared by the share of their first tokens; among ranks rows must be equal, bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from upscale.config import ModelConfig
from upscale.doctor.base import Check, Record, Session, flag_unequal
from upscale.randomness.streams import Purpose, Stream, philox
from upscale.sources import Source, SourceSettings
from upscale.sources.recurrent import RecurrentSource
from upscale.sources.tokens import token_dtype

LANES, ROWS = 2, 4
COMPARED_TOKENS, LEAST_SHARE = 12, 0.9
WORDS = 4096
ZERO_BLOCK = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
"""Philox 4x32-10 of counter and key zero, as its authors publish it (Random123, kat_vectors)."""
KEY = 0x5EED
BROKEN = (
    "Rows would be wrong. Compare the versions of torch and Triton with other nodes, empty Triton's cache (~/.triton), "
    "run `pytest tests/sources -m gpu` there, and leave the node out"
)
ROWS_DIFFER = (
    "A lane that moves to this node would go on with other rows. Use nodes of one kind with one environment, or accept "
    "that a resume in another world is not exact"
)


class Generator(Check):
    kind = "generator"

    def measure(self, session: Session) -> list[Record]:
        config, device = session.config, session.device
        wrong = None if words_are_right(device) else f"They differ from the published ones. {BROKEN}"
        found = [self.record(session, "random words", "wrong" if wrong else "right", problem=wrong)]
        if config.data.kind == "corpus":
            return found
        for place, settings in enumerate(config.data.sources):
            name = f"{settings.kind} {place + 1}" if len(config.data.sources) > 1 else settings.kind
            source = settings.build(config.model.vocabulary)
            rows = written(source, config.model, device)
            plain = written(reference(source, settings, config.model), config.model, torch.device("cpu"))
            share = agreement(rows, plain, source.seed_tokens)
            problem = None
            if share < LEAST_SHARE:
                problem = (
                    f"{share:.0%} of the first tokens are the reference's, {LEAST_SHARE:.0%} are expected. {BROKEN}"
                )
            found.append(self.record(session, f"{name}: equal to the reference", 100 * share, "%", problem))
            digest = hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:16]
            found.append(self.record(session, f"{name}: rows", digest))
        return found

    def judge(self, records: Sequence[Record], session: Session) -> list[Record]:
        return flag_unequal(records, {one.name: ROWS_DIFFER for one in records if one.name.endswith(": rows")})


def words_are_right(device: torch.device) -> bool:
    """Whether Philox gives the published words, and this device the words of the CPU."""
    block = philox((torch.zeros(1, dtype=torch.int64), 0, 0, 0), (0, 0))
    here, there = (
        Stream(KEY, range(LANES), [3] * LANES, where).bits(Purpose.TOKEN, WORDS) for where in (device, "cpu")
    )
    return tuple(int(word) for word in block) == ZERO_BLOCK and torch.equal(here.cpu(), there)


def reference(source: Source, settings: SourceSettings, model: ModelConfig) -> Source:
    """The same source, by PyTorch's operations alone where it has another way too."""
    if isinstance(source, RecurrentSource):
        return type(source)(vocabulary=model.vocabulary, eager=True, **settings.arguments())
    return source


def written(source: Source, model: ModelConfig, device: torch.device) -> torch.Tensor:
    """Rows of a few lanes, (LANES, ROWS, length) tokens on the CPU: the same wherever they are written."""
    length = model.context + 1  # some sources write whole frames
    noise = Stream(KEY, range(LANES), [0] * LANES).integers(
        Purpose.START_NOISE, model.vocabulary, ROWS, length + source.seed_tokens
    )
    conditions, seeds = (
        part.to(device, token_dtype(model.vocabulary)) for part in (noise[..., :length], noise[..., length:])
    )
    return source.write(Stream(KEY, range(LANES), [1] * LANES, device), conditions, seeds).cpu()


def agreement(rows: torch.Tensor, expected: torch.Tensor, seed_tokens: int) -> float:
    """The share of the first tokens after the seeds' that are equal."""
    return (rows == expected)[..., seed_tokens : seed_tokens + COMPARED_TOKENS].float().mean().item()
