"""The sources of lists and stacks, as their definitions read: one sample at a time."""

from tests.reference.row_sources import RowSource, uniform, words
from upscale.randomness.streams import Purpose


class Samples(RowSource):
    """Rows of samples, one after the other; `sample` gives tokens and which of them are targets."""

    def row(self, stream, rows, row, length):
        tokens = []
        count = -(-length // self.length)
        for number in range(count):
            sample, targets = self.sample(stream, rows * count, row * count + number)
            assert len(sample) == len(targets) == self.length
            tokens += [token if target else -1 - token for token, target in zip(sample, targets, strict=True)]
        return tokens[:length]


class ListsSource(Samples):
    def __init__(self, *, vocabulary, task, items=64, values=100, loss="answer"):
        self.task, self.items, self.values, self.loss = task, items, values, loss
        self.length = 2 * items + {"union": 2, "delete": 3}.get(task, 1)

    def sample(self, stream, samples, number):
        separator, pad = self.values, self.values + 1
        x = [1 + (w * (self.values - 1) >> 32) for w in words(stream, Purpose.LIST_VALUE, samples, number, self.items)]
        question = [*x, separator]
        if self.task == "identity":
            answer = list(x)
        elif self.task == "reverse":
            answer = x[::-1]
        elif self.task == "sort":
            answer = sorted(x)
        elif self.task == "delete":
            query = 1 + (words(stream, Purpose.LIST_QUERY, samples, number, 1)[0] * (self.values - 1) >> 32)
            question += [query, separator]
            answer = list(x)
            if query in answer:
                answer.remove(query)
        else:
            answer = list(dict.fromkeys(x))
            if self.task == "union":
                half = self.items // 2
                question = [*x[:half], separator, *x[half:], separator]
        targets = [self.loss == "all"] * len(question) + [True] * len(answer)
        pads = self.items - len(answer)
        return question + answer + [pad] * pads, targets + [self.loss == "all"] * pads


class StackSource(Samples):
    def __init__(self, *, vocabulary, operations=64, values=100):
        self.operations, self.values, self.length = operations, values, 2 * operations + 1

    def sample(self, stream, samples, number):
        wishes = words(stream, Purpose.STACK_PUSH, samples, number, self.operations)
        draws = words(stream, Purpose.STACK_VALUE, samples, number, self.operations)
        # The free values in the order that swapping gives them: the definition leaves it open which one a word means.
        order, size, tokens = list(range(1, self.values)), 0, []
        for time in range(self.operations):
            if time == self.operations - 1 and size > 1:
                push = False
            elif size <= 1:
                push = True
            else:
                push = uniform(wishes[time]) < (0.75 if time < 2 * self.operations // 3 else 0.25)
            if not push:
                size -= 1
                tokens.append(0)
                continue
            place = size + (draws[time] * (len(order) - size) >> 32)
            order[size], order[place] = order[place], order[size]
            tokens.append(order[size])
            size += 1
        stack = order[:size][::-1]
        pads = self.operations - size
        tokens += [self.values, *stack, *[self.values + 1] * pads]
        return tokens, [False] * (self.operations + 1) + [True] * size + [False] * pads


class NoisySetSource(Samples):
    def __init__(self, *, vocabulary, values=128, total=511):
        self.values, self.total, self.length = values, total, total + 1

    def sample(self, stream, samples, number):
        x, seen = [], []
        for word in words(stream, Purpose.LIST_VALUE, samples, number, self.total):
            value = 1 + (word * self.values >> 32)
            if len(x) + 1 + len({*seen, value}) > self.total:
                break
            x.append(value)
            seen += [value] if value not in seen else []
        if len(x) + len(seen) < self.total:
            x.append(seen[words(stream, Purpose.LIST_FILL, samples, number, 1)[0] * len(seen) >> 32])
        return [*x, self.values + 1, *seen], [True] * self.length


def noisy_set_law(values, total):
    """The next token of a sample."""

    def law(prefix):
        if values + 1 in prefix:
            x = prefix[: prefix.index(values + 1)]
            return {list(dict.fromkeys(x))[len(prefix) - len(x) - 1]: 1.0}
        left = total - len(prefix) - len(set(prefix))
        if left == 0:
            return {values + 1: 1.0}
        choices = sorted(set(prefix)) if left == 1 else range(1, values + 1)
        return {value: 1 / len(choices) for value in choices}

    return law


class RewritingSource(RowSource):
    def __init__(self, *, vocabulary, task="mixed", symbols=249):
        self.task, self.symbols = task, symbols

    def row(self, stream, rows, row, length):
        count = -(-length // 47)
        tokens = []
        for number in range(row * count, (row + 1) * count):
            question, answer = self.example(stream, rows * count, number)
            tokens += [-1 - token for token in question] + answer
        return tokens[:length]

    def example(self, stream, examples, number):
        """What is given, up to the 5, and the answer with its 6."""

        def draw(purpose, count):
            return words(stream, purpose, examples, number, count)

        keys = draw(Purpose.REWRITE_ALPHABET, self.symbols)
        alphabet = [7 + symbol for symbol in sorted(range(self.symbols), key=lambda s: (keys[s], s))[:68]]
        upper, lower, operators = alphabet[:24], alphabet[24:48], alphabet[48:]
        first, second = draw(Purpose.REWRITE_LENGTHS, 2)
        u, signs = 3 + (first * 3 >> 32), 5 + (second * 15 >> 32)
        drawn = draw(Purpose.REWRITE_PATTERN, 29)
        pattern = [upper[word * u >> 32] for word in drawn[: 2 * u]]
        pattern += [operators[word * 20 >> 32] for word in drawn[2 * u : 2 * u + signs]]
        order = draw(Purpose.REWRITE_ORDER, 29)
        pattern = [pattern[place] for place in sorted(range(len(pattern)), key=lambda place: (order[place], place))]
        sizes = [2 + (word * 7 >> 32) for word in draw(Purpose.REWRITE_VALUE_LENGTH, 5)]
        values = [(lower + operators)[word * 44 >> 32] for word in draw(Purpose.REWRITE_VALUE, 40)]
        strings = {upper[v]: values[8 * v : 8 * v + sizes[v]] for v in range(u)}
        mapping = [token for name, string in strings.items() for token in [name, 3, *string, 4]]
        result = [token for symbol in pattern for token in strings.get(symbol, [symbol])]
        task = draw(Purpose.REWRITE_TASK, 1)[0] * 3 >> 32
        if self.task != "mixed":
            task = ["deduct", "abduct", "induct"].index(self.task)
        one, two, answer = [(pattern, mapping, result), (pattern, result, mapping), (result, mapping, pattern)][task]
        return [task, *one, 4, *two, 5], [*answer, 6]
