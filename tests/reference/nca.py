"""Neural cellular automata in plain Python: one row, one cell at a time, whole numbers where they are exact."""

import gzip
import math
import statistics
import struct

from tests.reference.row_sources import RowSource, permutation
from upscale.randomness.streams import Purpose, Stream

UNIT = 2.0**-14


class NCASource(RowSource):
    def __init__(self, *, vocabulary, colours=4, grid=12, patch=(2, 2), burn_in=10, stride=1, temperature=1e-4,
                 identity_bias=0.0, wrap_channels=False, delimiters=False, band=(0.75, 2.0), permute=True,
                 ceiling=1.0):  # fmt: skip
        self.vocabulary, self.colours, self.grid, self.patch = vocabulary, colours, grid, patch
        self.burn_in, self.stride, self.temperature, self.identity_bias = burn_in, stride, temperature, identity_bias
        self.wrap_channels, self.delimiters, self.band, self.permute = wrap_channels, delimiters, band, permute
        self.ceiling = ceiling

    def row(self, stream, rows, row, length):
        lane, number = int(stream.lanes[0]) + (row << 20), int(stream.rounds[0])
        own = Stream(stream.seed, [lane], [number])
        attempt = 0
        while True:
            trial = Stream(stream.seed, [lane], [number + (attempt << 20)])
            rule = self.rule(trial)
            judged = self.frames(
                trial, rule, 10, 1, Purpose.NCA_FILTER_COLOUR, Purpose.NCA_FILTER_START, Purpose.NCA_FILTER_NOISE
            )
            score = self.score([token for frame in judged for token in frame])
            if self.band == (0.0, 2.0) or self.band[0] < score < self.band[1]:
                break
            attempt += 1
        cells = self.patch[0] * self.patch[1]
        count = math.ceil(length / (self.grid**2 // cells + 2 * self.delimiters))
        tokens = []
        for frame in self.frames(
            own, rule, count, self.stride, Purpose.NCA_COLOUR, Purpose.NCA_START, Purpose.NCA_NOISE
        ):
            if self.delimiters:
                frame = [self.colours**cells, *frame, self.colours**cells + 1]
            tokens += frame
        ids = permutation(stream, rows, row, self.vocabulary) if self.permute else range(self.vocabulary)
        return [ids[token] for token in tokens[:length]]

    def score(self, tokens):
        content = struct.pack(f"<{len(tokens)}i", *tokens)
        return len(gzip.compress(content, 9)) / len(content) / self.ceiling

    def rule(self, own):
        """Kernel[neighbour][colour][channel], middle[channel][hidden], output[hidden][colour], in units of 2^-14."""

        def weights(purpose, fan_in, count):
            numbers = own.uniform(purpose, count)[0].tolist()
            low = statistics.NormalDist().cdf(-2)
            values = [statistics.NormalDist().inv_cdf(low + (1 - 2 * low) * number) for number in numbers]
            # The standard deviation of a normal variable cut at +-2.
            density = math.exp(-2) / math.sqrt(2 * math.pi)
            deviation = math.sqrt(1 - 4 * density / (1 - 2 * low))
            return [round(value / deviation / math.sqrt(fan_in) / UNIT) for value in values]

        channels = self.colours + 2 * self.wrap_channels
        flat = weights(Purpose.NCA_PERCEPTION, 9 * channels, 9 * channels * 4)
        kernel = [[flat[4 * (channels * k + c) :][:4] for c in range(channels)] for k in range(9)]
        if self.wrap_channels:
            kernel = [
                [
                    # A one-hot colour shows up in its own channel, and at the other end if it is the first or the last.
                    [sum(taps[c][i] for c in range(channels) if (c - 1) % self.colours == colour) for i in range(4)]
                    for colour in range(self.colours)
                ]
                for taps in kernel
            ]
        flat = weights(Purpose.NCA_HIDDEN, 4, 64)
        middle = [flat[16 * i :][:16] for i in range(4)]
        flat = weights(Purpose.NCA_OUTPUT, 16, 16 * self.colours)
        return kernel, middle, [flat[self.colours * i :][: self.colours] for i in range(16)]

    def frames(self, own, rule, count, stride, colour, start, noise):
        steps = self.burn_in + (count - 1) * stride
        shares = [math.exp(number) for number in own.normal(colour, self.colours)[0].tolist()]
        heights = own.uniform(start, self.grid**2)[0].tolist()
        state = [self.choose(shares, height) for height in heights]
        heights = own.uniform(noise, max(1, steps), self.grid**2)[0].tolist()
        frames = []
        for step in range(steps + 1):
            if step >= self.burn_in and (step - self.burn_in) % stride == 0:
                frames.append(self.patches(state))
            if step < steps:
                state = [self.next_colour(state, cell, rule, heights[step][cell]) for cell in range(self.grid**2)]
        return frames

    @staticmethod
    def choose(shares, height):
        whole = [int(share * 2**32) for share in shares]
        left = int(height * sum(whole))
        for colour, share in enumerate(whole):
            if left < share:
                return colour
            left -= share

    def next_colour(self, state, cell, rule, height):
        kernel, middle, output = rule
        row, column = divmod(cell, self.grid)
        seen = [0] * 4
        for k in range(9):
            there = (row + k // 3 - 1) % self.grid * self.grid + (column + k % 3 - 1) % self.grid
            seen = [a + b for a, b in zip(seen, kernel[k][state[there]], strict=True)]
        hidden = [max(0, sum(seen[i] * middle[i][j] for i in range(4))) for j in range(16)]
        logits = [sum(hidden[j] * output[j][c] for j in range(16)) for c in range(self.colours)]
        logits[state[cell]] += round(self.identity_bias / UNIT**3)
        if self.temperature == 0:
            return logits.index(max(logits))
        return self.choose([math.exp((each - max(logits)) * UNIT**3 / self.temperature) for each in logits], height)

    def patches(self, state):
        high, wide = self.patch
        tokens = []
        for top in range(0, self.grid, high):
            for left in range(0, self.grid, wide):
                cells = [state[(top + i) * self.grid + left + j] for i in range(high) for j in range(wide)]
                tokens.append(sum(cell * self.colours**k for k, cell in enumerate(cells)))
        return tokens
