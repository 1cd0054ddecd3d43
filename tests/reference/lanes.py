"""Algorithm 1 of Bloem 2025 for one lane, in plain Python lists: what upscale.lanes must do to each of its lanes."""

import math

import torch

from upscale.randomness.streams import Purpose, Stream


class Lane:
    """One lane: a list of rows and a count of rounds."""

    def __init__(self, *, seed, lane, context, vocabulary, draw, enrich_rows, buffer_rows, reset_constant, reset_noise,
                 sources, iterate=True):  # fmt: skip
        self.seed, self.lane, self.length, self.vocabulary = seed, lane, context + 1, vocabulary
        self.draw_rows, self.enrich_rows, self.buffer_rows = draw, enrich_rows, buffer_rows
        self.constant_share, self.noise_share = reset_constant, reset_noise
        self.sources, self.iterate = sources, iterate
        self.round = 0
        self.buffer = self.half_and_half(Purpose.START_CONSTANT, Purpose.START_NOISE, buffer_rows)

    def stream(self):
        return Stream(self.seed, [self.lane], [self.round])

    def half_and_half(self, constant, noise, rows):
        half = rows // 2
        tokens = self.stream().integers(constant, self.vocabulary, half)[0].tolist()
        noise_rows = self.stream().integers(noise, self.vocabulary, rows - half, self.length)[0].tolist()
        return [[token] * self.length for token in tokens] + noise_rows

    def run_round(self, count):
        """One round; its `count` training rows."""
        stream = self.stream()

        # (1) a new program
        source = self.sources[0][0]
        if len(self.sources) > 1:
            number = stream.uniform(Purpose.SOURCE, 1).item() * sum(weight for _, weight in self.sources)
            for source, weight in self.sources:  # noqa: B007
                number -= weight
                if number < 0:
                    break

        # (2) rows to enrich, without replacement, are the conditions; (3) seeds from anywhere in the buffer
        picked = stream.choice(Purpose.ENRICH, self.buffer_rows, self.enrich_rows)[0].tolist()
        if self.iterate:
            conditions = [self.buffer[row] for row in picked]
            rows = stream.integers(Purpose.SEED_ROW, self.buffer_rows, self.enrich_rows)[0].tolist()
            places = self.length - source.seed_tokens + 1
            offsets = stream.integers(Purpose.SEED_OFFSET, places, self.enrich_rows)[0].tolist()
            seeds = [
                self.buffer[row][offset : offset + source.seed_tokens]
                for row, offset in zip(rows, offsets, strict=True)
            ]
        else:
            fresh = Purpose.FRESH_CONDITION_CONSTANT, Purpose.FRESH_CONDITION_NOISE
            conditions = self.half_and_half(*fresh, self.enrich_rows)
            fresh = Purpose.FRESH_SEED_CONSTANT, Purpose.FRESH_SEED_NOISE
            seeds = [row[: source.seed_tokens] for row in self.half_and_half(*fresh, self.enrich_rows)]

        # (4) the program writes
        seeds = torch.tensor(seeds, dtype=torch.uint8).view(1, self.enrich_rows, source.seed_tokens)
        written = source.write(stream, torch.tensor([conditions], dtype=torch.uint8), seeds)[0].tolist()

        # (5) some of what it wrote becomes constant rows, some noise
        number = stream.uniform(Purpose.RESET_COUNT, 1).item()
        constant = math.floor(round(self.constant_share * self.enrich_rows, 6) + number)
        both = math.floor(round((self.constant_share + self.noise_share) * self.enrich_rows, 6) + number)
        tokens = stream.integers(Purpose.RESET_CONSTANT, self.vocabulary, self.enrich_rows)[0].tolist()
        noise = stream.integers(Purpose.RESET_NOISE, self.vocabulary, self.enrich_rows, self.length)[0].tolist()
        for i in range(constant):
            written[i] = [tokens[i]] * self.length
        for i in range(constant, both):
            written[i] = noise[i - constant]

        # (6) back to where the rows came from; (7) training rows from the whole buffer
        for row, new in zip(picked, written, strict=True):
            self.buffer[row] = new
        self.round += 1
        return [self.buffer[row] for row in stream.choice(Purpose.TRAIN, self.buffer_rows, count)[0].tolist()]

    def draw(self, rows):
        """`rows` training rows, at most `draw_rows` of them a round."""
        drawn = []
        while len(drawn) < rows:
            drawn += self.run_round(min(self.draw_rows, rows - len(drawn)))
        return drawn
