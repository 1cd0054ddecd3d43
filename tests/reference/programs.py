"""What the slow recurrent and transformer sources share: how a token is chosen, and row after row for every lane."""

import torch

from upscale.randomness.streams import Purpose, Stream
from upscale.sources.base import Source


def chosen(logits, temperature, number):
    """The token that a uniform number chooses at this temperature; the likeliest one at 0."""
    if temperature == 0:
        return int(logits.argmax())
    shares = torch.softmax(logits / temperature, dim=0).cumsum(0)
    height = (1 - number) * shares[-1].item()
    return next(token for token, share in enumerate(shares.tolist()) if share >= height)


class ProgramSource(Source):
    """A source in the sense of upscale.sources; `program` makes a program from a stream of one lane and round."""

    def __init__(self, program, seed_tokens, temperature):
        self.program, self.seed_tokens, self.temperature = program, seed_tokens, temperature

    def write(self, stream, conditions, seeds):
        rows, length = conditions.shape[1:]
        lanes = []
        for i in range(len(stream)):
            one = Stream(stream.seed, [int(stream.lanes[i])], [int(stream.rounds[i])])
            program = self.program(one, length)
            numbers = one.uniform(Purpose.TOKEN, rows, length - self.seed_tokens)[0].tolist()
            given = zip(conditions[i].tolist(), seeds[i].tolist(), numbers, strict=True)
            lanes.append([program.row(condition, seed, self.temperature, own) for condition, seed, own in given])
        return torch.tensor(lanes, dtype=conditions.dtype)
