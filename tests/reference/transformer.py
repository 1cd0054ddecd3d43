"""The transformer source, made of torch.nn.TransformerEncoderLayer: every token from a whole forward pass."""

import torch

from tests.reference.programs import ProgramSource, chosen
from upscale.randomness.streams import Purpose


class Program(torch.nn.Module):
    """One random transformer in float64, its parameters read from a stream of one lane and round."""

    def __init__(self, stream, *, vocabulary, hidden, layers, heads, multiplier, length):
        super().__init__()

        def between(purpose, bound, *shape):
            return (2 * stream.uniform(purpose, *shape)[0].double() - 1) * bound

        self.x = stream.normal(Purpose.EMBEDDING, vocabulary, hidden)[0].double()
        self.z = stream.normal(Purpose.CONDITION_EMBEDDING, vocabulary, hidden)[0].double()
        self.positions = stream.normal(Purpose.POSITION_EMBEDDING, length, hidden)[0].double()
        low, high = multiplier
        factor = low + (high - low) * stream.uniform(Purpose.MULTIPLIER, 1).double().item()
        wide = 4 * hidden
        # The bounds of Xavier's initialisation of a (3 hidden, hidden) matrix and of torch.nn.Linear's.
        project_in = between(Purpose.ATTENTION_IN, (6 / (3 * hidden + hidden)) ** 0.5, layers, 3 * hidden, hidden)
        project_out = between(Purpose.ATTENTION_OUT, hidden**-0.5, layers, hidden, hidden)
        first = between(Purpose.FEEDFORWARD_IN, hidden**-0.5, layers, wide, hidden)
        first_bias = between(Purpose.FEEDFORWARD_IN_BIAS, hidden**-0.5, layers, wide)
        second = between(Purpose.FEEDFORWARD_OUT, wide**-0.5, layers, hidden, wide)
        second_bias = between(Purpose.FEEDFORWARD_OUT_BIAS, wide**-0.5, layers, hidden)
        self.layers = torch.nn.ModuleList()
        for index in range(layers):
            layer = torch.nn.TransformerEncoderLayer(
                hidden, heads, dim_feedforward=wide, dropout=0.0, batch_first=True, dtype=torch.float64
            )
            with torch.no_grad():
                layer.self_attn.in_proj_weight.copy_(factor * project_in[index])
                layer.self_attn.out_proj.weight.copy_(factor * project_out[index])
                layer.linear1.weight.copy_(factor * first[index])
                layer.linear1.bias.copy_(first_bias[index])
                layer.linear2.weight.copy_(factor * second[index])
                layer.linear2.bias.copy_(second_bias[index])
            self.layers.append(layer)
        self.head = between(Purpose.HEAD_WEIGHT, hidden**-0.5, vocabulary, hidden)
        self.head_bias = between(Purpose.HEAD_BIAS, hidden**-0.5, vocabulary)

    @torch.no_grad()
    def row(self, condition, seed, temperature, numbers):
        """The row of one condition and seed; the uniform `numbers` choose the tokens after the seed."""
        x = list(seed)
        for t in range(len(seed), len(condition)):
            read = (self.x[x] + self.z[condition[:t]] + self.positions[:t])[None]
            mask = torch.nn.Transformer.generate_square_subsequent_mask(t, dtype=torch.float64)
            for layer in self.layers:
                read = layer(read, src_mask=mask, is_causal=True)
            logits = self.head @ read[0, -1] + self.head_bias
            x.append(chosen(logits, temperature, numbers[t - len(seed)]))
        return x


def transformer_source(
    *, vocabulary, hidden, layers=1, heads=4, seed_tokens=8, temperature=1e-4, multiplier=(0.0, 1.1)
):
    """A source that writes row after row with a `Program`."""
    given = dict(vocabulary=vocabulary, hidden=hidden, layers=layers, heads=heads, multiplier=multiplier)
    return ProgramSource(lambda stream, length: Program(stream, length=length, **given), seed_tokens, temperature)
