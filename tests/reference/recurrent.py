"""The recurrent sources as the paper words them (Bloem 2025): one program, one row, one token at a time."""

import math

import torch

from upscale.randomness.streams import Purpose, Stream
from upscale.sources.base import Source


class Program(torch.nn.Module):
    """One random program, made of torch.nn's own layers, its parameters read from a stream of one lane and round."""

    def __init__(self, kind, stream, *, vocabulary, hidden, multiplier, dtype):
        super().__init__()
        layer = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[kind]
        embedded = hidden // 2
        self.embedding = torch.nn.Embedding(vocabulary, embedded, dtype=dtype)
        self.layer = layer(2 * embedded, hidden, num_layers=1, dtype=dtype)
        self.head = torch.nn.Linear(hidden, vocabulary, dtype=dtype)

        def default(parameter, purpose):
            """What torch.nn.LSTM, GRU and Linear do by default: U(-1/sqrt(hidden), 1/sqrt(hidden))."""
            number = stream.uniform(purpose, *parameter.shape)[0].to(dtype)
            return (2 * number - 1) * (1 / math.sqrt(hidden))

        low, high = multiplier
        factor = low + (high - low) * stream.uniform(Purpose.MULTIPLIER, 1).to(dtype).item()
        with torch.no_grad():
            self.embedding.weight.copy_(stream.normal(Purpose.EMBEDDING, vocabulary, embedded)[0])
            self.layer.weight_ih_l0.copy_(factor * default(self.layer.weight_ih_l0, Purpose.WEIGHT_INPUT))
            self.layer.weight_hh_l0.copy_(factor * default(self.layer.weight_hh_l0, Purpose.WEIGHT_HIDDEN))
            self.layer.bias_ih_l0.copy_(default(self.layer.bias_ih_l0, Purpose.BIAS_INPUT))
            self.layer.bias_hh_l0.copy_(default(self.layer.bias_hh_l0, Purpose.BIAS_HIDDEN))
            self.head.weight.copy_(default(self.head.weight, Purpose.HEAD_WEIGHT))
            self.head.bias.copy_(default(self.head.bias, Purpose.HEAD_BIAS))

    @torch.no_grad()
    def row(self, condition, seed, temperature, numbers):
        """The row of one condition and seed; `numbers` are the uniform numbers that choose the tokens after the seed.

        The input that predicts x[t] is concat(embedding(x[t-1]), embedding(z[t-1])).
        """
        x, state = list(seed), None
        for t in range(1, len(condition)):
            tokens = torch.tensor([x[t - 1], condition[t - 1]])
            output, state = self.layer(self.embedding(tokens).view(1, 1, -1), state)
            if t < len(seed):
                continue
            logits = self.head(output[0, 0]).double()
            if temperature == 0:
                x.append(int(logits.argmax()))
                continue
            shares = torch.softmax(logits / temperature, dim=0).cumsum(0)
            height = (1 - numbers[t - len(seed)]) * shares[-1].item()
            x.append(next(token for token, share in enumerate(shares.tolist()) if share >= height))
        return x


class RecurrentSource(Source):
    """A source in the sense of upscale.sources, which writes row after row with a `Program`."""

    def __init__(
        self,
        kind,
        *,
        vocabulary,
        hidden,
        seed_tokens=8,
        temperature=1e-4,
        multiplier=(0.0, 1.1),
        dtype=torch.float64,
    ):
        self.seed_tokens, self.temperature = seed_tokens, temperature
        self.arguments = dict(kind=kind, vocabulary=vocabulary, hidden=hidden, multiplier=multiplier, dtype=dtype)

    def write(self, stream, conditions, seeds):
        lanes = []
        for i in range(len(stream)):
            one = Stream(stream.seed, [int(stream.lanes[i])], [int(stream.rounds[i])])
            program = Program(stream=one, **self.arguments)
            rows, length = conditions.shape[1:]
            numbers = one.uniform(Purpose.TOKEN, rows, length - self.seed_tokens)[0].tolist()
            lanes.append(
                [
                    program.row(conditions[i, j].tolist(), seeds[i, j].tolist(), self.temperature, numbers[j])
                    for j in range(rows)
                ]
            )
        return torch.tensor(lanes, dtype=torch.uint8)
