"""The recurrent sources as the paper words them (Bloem 2025): one program, one row, one token at a time."""

import math

import torch

from tests.reference.programs import ProgramSource, chosen
from upscale.randomness.streams import Purpose


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
            x.append(chosen(logits, temperature, numbers[t - len(seed)]))
        return x


def recurrent_source(
    kind, *, vocabulary, hidden, seed_tokens=8, temperature=1e-4, multiplier=(0.0, 1.1), dtype=torch.float64
):
    """A source that writes row after row with a `Program`."""

    def program(stream, length):
        return Program(kind, vocabulary=vocabulary, hidden=hidden, multiplier=multiplier, dtype=dtype, stream=stream)

    return ProgramSource(program, seed_tokens, temperature)
