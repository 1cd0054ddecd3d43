"""The generators against the tasks' definitions, and their rates against equations solved in tests/reference."""

from __future__ import annotations

import importlib
import math
import re

import numpy as np
import pytest

from tests.reference import evaluation_grammars as grammars
from upscale.evaluation.tasks import GENERATED, PAPER_ORDER, TASKS, Task
from upscale.settings import instances

DELIMITED = [name for name, task in GENERATED.items() if task.delimited]


def strings(name: str, characters: int = 100_000, seed: int = 0) -> list[str]:
    """The strings of a task without delimiters, split by the length of a string where there is no delimiter."""
    text = GENERATED[name].generate(characters, seed=seed).decode("latin-1")
    if GENERATED[name].delimited:
        assert text[0] == text[-1] == "|"
        return text[1:-1].split("|")
    length = {"aut": 512, "bitsflip": 12, "bitsrep": 9}[name]
    assert len(text) % length == 0
    return [text[start : start + length] for start in range(0, len(text), length)]


VOWELS = """
from upscale.evaluation.tasks.generated import GeneratedTask

VOWELS = GeneratedTask("{name}", "vowels", 2.3, True, lambda random: bytes(random.choice(list(b"aeiou"), 5).tolist()))
"""


def test_a_task_is_one_file(tmp_path, monkeypatch):
    """Against a room with one more file: it is found by its name; two files that claim one name are an error."""
    monkeypatch.syspath_prepend(tmp_path)
    for room, names in (("one_room", ["vowels", "letters"]), ("other_room", ["vowels", "vowels"])):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").touch()
        for number, name in enumerate(names):
            (tmp_path / room / f"file{number}.py").write_text(VOWELS.format(name=name))
    found = instances(importlib.import_module("one_room"), Task)
    assert list(found) == ["letters", "vowels"]
    dataset = found["vowels"].load(characters=100)
    assert dataset.split == "generated" and set(dataset.data.tobytes()) == set(b"aeiou|")
    with pytest.raises(TypeError, match="other_room.file1 defines 'vowels', and so does another file"):
        instances(importlib.import_module("other_room"), Task)


def test_the_papers_tasks_come_first_and_in_its_order():
    """Against the order of the records that earlier versions wrote: it decides how "all" is measured and listed."""
    assert list(TASKS)[: len(PAPER_ORDER)] == list(PAPER_ORDER)
    assert all(task.definition and task.name == name for name, task in TASKS.items())


@pytest.mark.parametrize("name", GENERATED)
def test_generate_is_long_enough_and_fixed_by_its_seed(name):
    """Against the contract: at least the characters asked for, equal for equal seeds, other for other seeds."""
    task = GENERATED[name]
    text = task.generate(3000, seed=1)
    assert 3000 <= len(text) < 3000 + 2500
    assert text == task.generate(3000, seed=1)
    assert text != task.generate(3000, seed=2)


def test_strings_follow_their_definition():
    """Against the definitions of the tasks in sources E2, checked by parsing every string."""
    for base, name in ((16, "champ"), (10, "champ_decimal")):
        for string in strings(name):
            assert any(
                "".join(format(n, "x" if base == 16 else "d") for n in range(start, start + 256)) == string
                for start in (int(string[:digits], base) for digits in range(1, 9))
            )
    for string in strings("dyck"):
        depths = np.cumsum([1 if bracket == "(" else -1 for bracket in string])
        assert depths[-1] == 0 and (depths[:-1] > 0).all()
    assert all(re.fullmatch(r"s((abc!)*|(uvw!)*|(klm!)*)s", string) for string in strings("ndfa"))
    assert all(math.isfinite(grammars.automaton_bits(string.encode("latin-1"))) for string in strings("aut", 5000))
    assert all(grammars.toy_probability(string) > 0 for string in strings("toy", 20_000))
    assert all(re.fullmatch(r"[xyz()+*/^ -]+", string) for string in strings("toy2", 20_000))
    for string in strings("toy2", 20_000):
        eval(string.replace("^", "**"), {"__builtins__": {}}, {"x": Anything(), "y": Anything(), "z": Anything()})
    for string in strings("bits"):
        first, second, xor, both, either, equal = np.array([bit == "0" for bit in string]).reshape(6, 5)
        assert (xor == (first ^ second)).all() and (both == (first & second)).all()
        assert (either == (first | second)).all() and (equal == (first == second)).all()
    assert all(string == string[::-1] for string in strings("bitsflip"))
    assert all(string == string[:3] * 3 for string in strings("bitsrep"))


class Anything:
    """A value under every operator of toy2, so that Python's parser checks its expressions."""

    def _other(self, _):
        return self

    __add__ = __sub__ = __mul__ = __truediv__ = __pow__ = _other


def test_published_mean_lengths():
    """Against sources E2: champ 1518.9 and 1878.5 characters, exactly counted; dyck 9, toy 47.0 and toy2 38.909."""
    assert grammars.champ_mean_length(16) == pytest.approx(1518.9, abs=0.05)
    assert grammars.champ_mean_length(10) == pytest.approx(1878.5, abs=0.05)
    assert grammars.toy_means()[0] + 1 == pytest.approx(47.0, abs=0.05)
    assert grammars.toy2_means()[0] + 1 == pytest.approx(38.909, abs=5e-4)
    means = {"champ": 1518.9, "champ_decimal": 1878.5, "dyck": 9, "ndfa": 14, "bits": 30}
    means |= {"toy": grammars.toy_means()[0], "toy2": grammars.toy2_means()[0]}
    for name, mean in means.items():
        lengths = np.array([len(string) for string in strings(name, 200_000, seed=3)])
        assert abs(lengths.mean() - mean) < 5 * lengths.std() / math.sqrt(len(lengths)) + 1e-9, name


def test_optimal_rates_with_a_closed_form():
    """Against sources E2 and against the equations of the grammars."""
    rates = {name: task.optimal_bits_per_character for name, task in GENERATED.items()}
    assert rates["champ"] == pytest.approx(0.01579, abs=5e-6)
    assert rates["champ"] == pytest.approx(math.log2(2**24 - 256) / (grammars.champ_mean_length(16) + 1), rel=1e-4)
    assert rates["champ_decimal"] == pytest.approx(0.01277, abs=5e-6)
    assert rates["champ_decimal"] == pytest.approx(
        math.log2(2**24 - 256) / (grammars.champ_mean_length(10) + 1), rel=1e-4
    )
    assert rates["dyck"] == pytest.approx(0.79096, abs=5e-6)
    assert rates["ndfa"] == pytest.approx(0.29559, abs=5e-6)
    assert rates["bits"] == pytest.approx(0.32258, abs=5e-6)
    assert (rates["bitsflip"], rates["bitsrep"]) == (0.5, 1 / 3)
    characters, bits = grammars.toy2_means()
    assert bits == pytest.approx(50.757, abs=5e-4)
    assert rates["toy2"] == pytest.approx(bits / (characters + 1), rel=1e-5)
    characters, bits = grammars.toy_means()
    assert rates["toy"] == pytest.approx((bits - grammars.toy_ambiguity()) / (characters + 1), abs=5e-6)


def test_optimal_rates_without_a_closed_form():
    """toy against inside probabilities of 4000 sentences and sources E2 (0.5433 +- 0.0003); aut against filtering."""
    characters, derivation_bits = grammars.toy_means()
    rate = GENERATED["toy"].optimal_bits_per_character
    assert rate == pytest.approx(0.5433, abs=3e-4)
    assert rate < derivation_bits / (characters + 1) == pytest.approx(0.5461, abs=4e-4)
    sentences = strings("toy", 190_000, seed=5)
    bits = np.array([-math.log2(grammars.toy_probability(sentence)) for sentence in sentences])
    assert bits.mean() / (characters + 1) == pytest.approx(rate, abs=4 * bits.std() / math.sqrt(len(bits)) / characters)
    lengths = np.array([len(sentence) + 1 for sentence in sentences])
    assert bits.sum() / lengths.sum() == pytest.approx(rate, abs=0.004)
    runs = [run.encode("latin-1") for run in strings("aut", 60_000, seed=5)]
    per_character = np.array([grammars.automaton_bits(run) / len(run) for run in runs])
    error = 4 * per_character.std() / math.sqrt(len(runs))
    assert per_character.mean() == pytest.approx(GENERATED["aut"].optimal_bits_per_character, abs=error)
    assert error < 0.02
