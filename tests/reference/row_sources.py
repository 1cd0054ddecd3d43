"""The sources that give every row its own program, as their definitions read: one row, one token at a time."""

import math

import torch

from upscale.randomness.streams import Purpose, Stream
from upscale.sources.base import Source


class RowSource(Source):
    """A source in the sense of upscale.sources; a subclass gives `row(stream, rows, row, length)`, a list of tokens."""

    seed_tokens = 0

    def write(self, stream, conditions, seeds):
        rows, length = conditions.shape[1:]
        ones = [Stream(stream.seed, [int(a)], [int(b)]) for a, b in zip(stream.lanes, stream.rounds, strict=True)]
        lanes = [[self.row(one, rows, row, length) for row in range(rows)] for one in ones]
        return torch.tensor(lanes, dtype=conditions.dtype)


def words(stream, purpose, rows, row, count):
    """`count` random words of one row where each row has as many."""
    return stream.bits(purpose, rows * count)[0].tolist()[row * count : (row + 1) * count]


def permutation(stream, rows, row, vocabulary, purpose=Purpose.PERMUTATION):
    """The ids sorted by a random word each."""
    keys = words(stream, purpose, rows, row, vocabulary)
    return sorted(range(vocabulary), key=lambda token: (keys[token], token))


def uniform(word):
    return (word >> 8) / 2**24


class PointwiseSource(RowSource):
    def __init__(self, *, vocabulary, variant="paper"):
        self.vocabulary, self.variant = vocabulary, variant

    def row(self, stream, rows, row, length):
        if self.variant == "paper":
            shares = [number**2 for number in stream.normal(Purpose.DIRICHLET, rows, self.vocabulary)[0, row].tolist()]
        else:
            most = min(19, self.vocabulary)
            count = max(1, (words(stream, Purpose.DIRICHLET_COUNT, rows, row, 1)[0] * (most + 1)) >> 32)
            heights = [uniform(word) for word in words(stream, Purpose.DIRICHLET, rows, row, most)]
            chosen = permutation(stream, rows, row, self.vocabulary, Purpose.DIRICHLET_ENTRIES)
            shares = [0.0] * self.vocabulary
            for entry, height in zip(chosen[:count], heights, strict=False):
                shares[entry] = max(-math.log(1 - height), 2.0**-32)
        tokens = []
        for word in words(stream, Purpose.TOKEN, rows, row, length):
            left = uniform(word) * sum(shares)
            token = 0
            while left >= shares[token]:
                left -= shares[token]
                token += 1
            tokens.append(token)
        return tokens


class AutomatonSource(RowSource):
    def __init__(self, *, vocabulary, permute=True):
        self.vocabulary, self.permute = vocabulary, permute

    def row(self, stream, rows, row, length):
        def geometric(purpose):
            height, count = uniform(words(stream, purpose, rows, row, 1)[0]), 1
            while 1 - height <= 0.9**count:
                count += 1
            return count

        states = geometric(Purpose.AUTOMATON_STATES)
        symbols = min(geometric(Purpose.AUTOMATON_SYMBOLS), 256, self.vocabulary)
        share = words(stream, Purpose.AUTOMATON_EDGE_SHARE, rows, row, 1)[0]
        exists = stream.bits(Purpose.AUTOMATON_EDGE, states**2 * rows)[0].tolist()[row::rows]
        named = stream.bits(Purpose.AUTOMATON_LABEL, states**2 * rows)[0].tolist()[row::rows]
        # Pairs are numbered in growing squares: (0,0), (1,0), (1,1), (0,1), (2,0), (2,1), (2,2), (0,2), (1,2), ...
        pairs = []
        for size in range(states):
            pairs += [(size, other) for other in range(size + 1)] + [(other, size) for other in range(size)]
        labels = {
            pair: (name * symbols) >> 32 for pair, word, name in zip(pairs, exists, named, strict=True) if word < share
        }
        tokens, state = [], 0
        for word in words(stream, Purpose.TOKEN, rows, row, length):
            targets = [other for other in range(states) if (state, other) in labels]
            if not targets:
                tokens.append(0)
                state = 0
                continue
            target = targets[(word * len(targets)) >> 32]
            tokens.append(labels[state, target])
            state = target
        ids = permutation(stream, rows, row, self.vocabulary) if self.permute else range(self.vocabulary)
        return [ids[token] for token in tokens]


class DyckSource(RowSource):
    def __init__(
        self,
        *,
        vocabulary,
        variant="words",
        brackets=64,
        open_probability=0.5,
        depth=64,
        word_tokens=None,
        pairs=None,
        permute=False,
    ):
        self.vocabulary, self.variant, self.brackets, self.permute = vocabulary, variant, brackets, permute
        self.open_probability, self.depth, self.word_tokens, self.pairs = open_probability, depth, word_tokens, pairs

    def row(self, stream, rows, row, length):
        wishes = [uniform(word) for word in words(stream, Purpose.DYCK_OPEN, rows, row, length)]
        types = [(word * self.brackets) >> 32 for word in words(stream, Purpose.DYCK_TYPE, rows, row, length)]
        if self.variant == "delimited":
            return self.strings(stream, rows, row, wishes, types)[:length]
        tokens, stack, word = [], [], 0
        for wish, kind in zip(wishes, types, strict=True):
            left = length - len(tokens)
            if self.variant == "balanced":
                opens = not stack or (left > len(stack) and wish < self.open_probability and len(stack) < left - 1)
            else:
                ends = self.word_tokens is not None and word >= self.word_tokens
                opens = not stack or (len(stack) < self.depth and not ends and wish < self.open_probability)
            if opens:
                stack.append(kind)
                tokens.append(kind)
            else:
                tokens.append(self.brackets + stack.pop())
            word = word + 1 if stack else 0
        ids = permutation(stream, rows, row, self.vocabulary) if self.permute else range(self.vocabulary)
        return [ids[token] for token in tokens]

    def strings(self, stream, rows, row, wishes, types):
        """String after string, each between its two marks, until the row is full; a mark uses up a wish and a type."""
        fewest, most = self.pairs
        length = len(types)
        most_strings = -(-length // (2 * fewest + 2))
        drawn = words(stream, Purpose.DYCK_PAIRS, rows, row, most_strings)
        tokens = []
        for word in drawn:
            pairs = fewest + ((word * (most - fewest + 1)) >> 32)
            tokens.append(2 * self.brackets)
            stack, opened = [], 0
            while (opened < pairs or stack) and len(tokens) < length:
                wish, kind = wishes[len(tokens)], types[len(tokens)]
                may_open = opened < pairs and len(stack) < self.depth
                if stack and not (may_open and wish < self.open_probability):
                    tokens.append(self.brackets + stack.pop())
                else:
                    stack.append(kind)
                    opened += 1
                    tokens.append(kind)
            tokens.append(2 * self.brackets + 1)
        return tokens


class ShuffleDyckSource(RowSource):
    def __init__(self, *, vocabulary, brackets=64, depth=16, open_probability=0.5):
        self.brackets, self.depth, self.open_probability = brackets, depth, open_probability

    def row(self, stream, rows, row, length):
        wishes = [uniform(word) for word in words(stream, Purpose.DYCK_OPEN, rows, row, length)]
        types = [(word * self.brackets) >> 32 for word in words(stream, Purpose.DYCK_TYPE, rows, row, length)]
        closing = words(stream, Purpose.SHUFFLE_CLOSE, rows, row, length)
        tokens, counts = [], [0] * self.brackets
        for wish, kind, word in zip(wishes, types, closing, strict=True):
            if sum(counts) == 0 or (sum(counts) < self.depth and wish < self.open_probability):
                counts[kind] += 1
                tokens.append(kind)
            else:
                open_types = [kind for kind in range(self.brackets) if counts[kind]]
                kind = open_types[(word * len(open_types)) >> 32]
                counts[kind] -= 1
                tokens.append(self.brackets + kind)
        return tokens
