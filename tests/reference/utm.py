"""BrainPhoque in plain Python, from its definition: one instruction at a time, brackets as objects of their own."""

from tests.reference.row_sources import RowSource, permutation
from upscale.randomness.streams import Purpose

SYMBOLS = "+-><[].{"


def run(next_symbol, *, alphabet, memory_size, maximal_steps, output_limit):
    """Runs `next_symbol(program)`, which gives the next symbol or None at the program's end.

    Returns status, output, steps and the program as executed.
    """
    memory, pointer = [0] * memory_size, 0
    program, opened, partner = [], [], {}
    bodies, continuations = {}, {}
    output, steps, position = [], 0, 0
    while True:
        is_new = position == len(program)
        if is_new:
            symbol = next_symbol(program)
            if symbol is None:
                return "HALTED", output, steps, "".join(program)
            if symbol in "[{":
                symbol = "{" if memory[pointer] == 0 else "["
            program.append(symbol)
        symbol, here = program[position], position
        position += 1
        if symbol == "+":
            memory[pointer] = (memory[pointer] + 1) % alphabet
        elif symbol == "-":
            memory[pointer] = (memory[pointer] - 1) % alphabet
        elif symbol == ">":
            pointer = (pointer + 1) % memory_size
        elif symbol == "<":
            pointer = (pointer - 1) % memory_size
        elif symbol == ".":
            output.append(memory[pointer])
        elif symbol == "[":
            if is_new:
                opened.append(here)
            elif memory[pointer] == 0:
                if here not in continuations:
                    continuations[here] = len(program)
                position = continuations[here]
        elif symbol == "{":
            if not is_new and memory[pointer] != 0:
                if here not in bodies:
                    bodies[here] = len(program)
                    opened.append(here)
                position = bodies[here]
        elif symbol == "]":
            if is_new and opened:
                partner[here] = opened.pop()
            if here in partner:
                position = partner[here]
        steps += 1
        if steps == maximal_steps:
            return "TIMEOUT", output, steps, "".join(program)
        if len(output) >= output_limit:
            return "OUTPUT_LIMIT", output, steps, "".join(program)


def given(text):
    """The symbols of a finite program."""
    return lambda program: text[len(program)] if len(program) < len(text) else None


class UTMSource(RowSource):
    def __init__(self, *, vocabulary, alphabet=128, memory=10, steps=100, program_length=100, counts=None,
                 padding="repeat", permute=True):  # fmt: skip
        self.vocabulary, self.program_length, self.counts = vocabulary, program_length, counts
        self.padding, self.permute = padding, permute
        self.arguments = dict(alphabet=alphabet, memory_size=memory, maximal_steps=steps)

    def row(self, stream, rows, row, length):
        words = stream.bits(Purpose.UTM_SYMBOL, rows * self.program_length)[0].tolist()
        words = words[row * self.program_length : (row + 1) * self.program_length]

        def next_symbol(program):
            if len(program) == self.program_length:
                return None
            word = words[len(program)]
            if self.counts is None:
                return SYMBOLS[word * 7 // 2**32]
            weights = [2 * number + 1 for number in self.counts["".join(program[-2:])]]
            left = word * sum(weights) // 2**32
            for symbol, weight in zip(SYMBOLS, weights, strict=True):
                if left < weight:
                    return symbol
                left -= weight

        output = run(next_symbol, output_limit=length, **self.arguments)[1] or [0]
        again = output if self.padding == "repeat" else [0]
        while len(output) < length:
            output = output + again
        ids = permutation(stream, rows, row, self.vocabulary) if self.permute else range(self.vocabulary)
        return [ids[token] for token in output[:length]]
