"""The sources of formal structures, as their definitions read, and the exact next-token laws of some of them."""

import itertools
import math

from tests.reference.row_sources import RowSource, uniform, words
from upscale.randomness.streams import Purpose


class WWSource(RowSource):
    def __init__(self, *, vocabulary, symbols=64, shortest=10, longest=510):
        self.symbols, self.shortest, self.longest = symbols, shortest, longest

    def row(self, stream, rows, row, length):
        sizes = words(stream, Purpose.WW_LENGTH, rows, row, -(-length // (2 * self.shortest)))
        symbols = [(word * self.symbols) >> 32 for word in words(stream, Purpose.WW_SYMBOL, rows, row, length)]
        tokens = []
        for word in sizes:
            size = self.shortest + ((word * (self.longest - self.shortest + 1)) >> 32)
            fresh = symbols[len(tokens) : len(tokens) + size]
            tokens += fresh + (fresh if len(fresh) == size else [])
        return tokens[:length]


class MinimalistSource(RowSource):
    def __init__(self, *, vocabulary):
        self.sentences = []
        for move, agree in itertools.product((False, True), (2, 3)):
            subject = f"[ {agree} [ 4 ] [ 9 ] ]"
            for order in itertools.permutations(("[ 12 ]", "[ 6 ]" if move else "[ ]", "[ [ 4 ] [ 9 ] ]")):
                tense = f"[ {'[ ]' if move else subject} [ 11 {agree + 5} ] [ {' '.join(order)} ] ]"
                text = f"[ {f'[ {subject} ]' if move else '[ ]'} [ 10 {'1 ' * move}] {tense} ]"
                self.sentences.append([int({"[": 0, "]": 5}.get(part, part)) for part in text.split()])

    def row(self, stream, rows, row, length):
        tokens = []
        for word in words(stream, Purpose.SENTENCE, rows, row, -(-length // 37)):
            tokens += self.sentences[(word * 24) >> 32]
        return tokens[:length]


class CellsSource(RowSource):
    def __init__(self, *, vocabulary, rule=110, cells=64, width=None, cells_per_token=1, separator=True, burn_in=0):
        self.rule, self.cells, self.width, self.separator = rule, cells, width or cells, separator
        self.cells_per_token, self.burn_in = cells_per_token, burn_in

    def row(self, stream, rows, row, length):
        state = [word >> 31 for word in words(stream, Purpose.CELLS_START, rows, row, self.cells)]
        rule = words(stream, Purpose.CELLS_RULE, rows, row, 1)[0] >> 24 if self.rule == "random" else self.rule
        tokens, step = [], 0
        while len(tokens) < length:
            if step >= self.burn_in:
                for place in range(0, self.width, self.cells_per_token):
                    tokens.append(sum(state[place + bit] << bit for bit in range(self.cells_per_token)))
                tokens += [2**self.cells_per_token] * self.separator
            state = next_state(state, rule)
            step += 1
        return tokens[:length]


def next_state(state, rule):
    """A ring of cells one step later, by the rule's table."""
    table = {tuple(map(int, f"{number:03b}")): rule >> number & 1 for number in range(8)}
    size = len(state)
    return [table[state[place - 1], state[place], state[(place + 1) % size]] for place in range(size)]


class NestingSource(RowSource):
    def __init__(self, *, vocabulary, structure, words=256, zipf=True, paired=False, open_probability=0.49,
                 cross_share=0.1, block=10):  # fmt: skip
        self.structure, self.count, self.zipf, self.paired = structure, words, zipf, paired
        self.open_probability, self.block = open_probability, block
        self.cross_share = {"nest": 0.0, "cross": 1.0, "mix": cross_share, "repetition": 0.0}[structure]

    def word(self, number):
        weights = [1 / (rank + 2.7) if self.zipf else 1 for rank in range(self.count)]
        height, left = number / 2**32 * sum(weights), 0.0
        for rank, weight in enumerate(weights):
            left += weight
            if height < left:
                return rank
        return self.count - 1

    def distance(self, number):
        """The first d with at most so much of Catalan(j) p^j q^(j + 1), j = (d - 1) / 2, below it."""
        p, d, left = self.open_probability, 1, 0.0
        while d < 2000:
            j = (d - 1) // 2
            logs = math.lgamma(2 * j + 1) - math.lgamma(j + 1) - math.lgamma(j + 2)
            left += math.exp(logs + j * math.log(p) + (j + 1) * math.log(1 - p))
            if number / 2**32 < left:
                return d
            d += 2
        return d

    def row(self, stream, rows, row, length):
        drawn = [self.word(number) for number in words(stream, Purpose.NEST_WORD, rows, row, length)]
        if self.structure == "repetition":
            tokens = []
            while len(tokens) < length:
                tokens += 2 * drawn[len(tokens) : len(tokens) + self.block]
            return tokens[:length]
        wishes = [uniform(word) for word in words(stream, Purpose.NEST_OPEN, rows, row, length)]
        crosses = [uniform(word) for word in words(stream, Purpose.NEST_CROSS, rows, row, length)]
        distances = words(stream, Purpose.NEST_DISTANCE, rows, row, length)
        tokens, stack = [None] * length, []
        for time in range(length):
            if tokens[time] is not None:
                continue
            if crosses[time] < self.cross_share:
                tokens[time] = drawn[time]
                target = time + self.distance(distances[time])
                steps = [target, *itertools.chain(*((target - step, target + step) for step in range(1, length)))]
                free = [place for place in steps if 0 <= place < length and tokens[place] is None]
                if target < length and free:
                    tokens[free[0]] = drawn[time]
            elif not stack or wishes[time] < self.open_probability:
                tokens[time] = drawn[time]
                stack.append(drawn[time])
            else:
                tokens[time] = stack.pop() + self.count * self.paired
        return tokens


def expected_bits(law, length):
    """Bits of each token given those before it, from `law(prefix)`, a dict of next tokens: all rows are walked."""
    bits, level = [], {(): 1.0}
    for _ in range(length):
        found, cost = {}, 0.0
        for prefix, probability in level.items():
            for token, share in law(prefix).items():
                if share:
                    cost -= probability * share * math.log2(share)
                    found[(*prefix, token)] = probability * share
        bits.append(cost)
        level = found
    assert math.isclose(sum(level.values()), 1.0)
    return bits


def dyck_law(k, p, *, depth=None, word_tokens=None, length=None):
    """Of words; of a balanced row if `length` is given."""

    def law(prefix):
        stack, word = [], 0
        for token in prefix:
            if token < k:
                stack.append(token)
            else:
                stack.pop()
            word = word + 1 if stack else 0
        if not stack:
            return {token: 1 / k for token in range(k)}
        left = length - len(prefix) if length else None
        may = len(stack) < left - 1 if length else len(stack) < depth and not (word_tokens and word >= word_tokens)
        opening = p if may else 0.0
        return {**{token: opening / k for token in range(k)}, k + stack[-1]: 1 - opening}

    return law


def shuffle_law(k, p, depth):
    def law(prefix):
        counts = [prefix.count(token) - prefix.count(k + token) for token in range(k)]
        opening = 1.0 if not any(counts) else p if sum(counts) < depth else 0.0
        distinct = sum(map(bool, counts))
        closing = {k + token: (1 - opening) / distinct for token in range(k) if counts[token]}
        return {**{token: opening / k for token in range(k)}, **closing}

    return law


def nest_law(shares, p):
    def law(prefix):
        stack, k = [], len(shares)
        for token in prefix:
            if token < k:
                stack.append(token)
            else:
                stack.pop()
        opening = p if stack else 1.0
        return {**{t: opening * s for t, s in enumerate(shares)}, **({k + stack[-1]: 1 - p} if stack else {})}

    return law


def dirichlet_law(vocabulary):
    """Of tokens whose distribution is drawn from Dirichlet(1/2): Krichevsky and Trofimov's estimate."""
    return lambda prefix: {t: (prefix.count(t) + 0.5) / (len(prefix) + vocabulary / 2) for t in range(vocabulary)}
