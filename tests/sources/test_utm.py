"""The UTM source, against the definition in plain Python, recorded runs of the original machine, and itself."""

import json
import random
from pathlib import Path

import pytest
import torch

from tests.reference import utm as reference
from tests.sources.common import assert_rows_are_those_of, assert_rows_do_not_depend_on_the_call, given
from upscale.errors import UserError
from upscale.sources import utm
from upscale.sources.utm import UTMSource

COUNTS = json.loads(Path(utm.__file__).with_name("transitions.json").read_text())["counts"]

# What the original machine (google-deepmind/neural_networks_solomonoff_induction) does: alphabet 9, 10 cells. Program,
# steps allowed, output limit; status, steps, output, program as executed (None: as given).
RECORDED = [
    ("-.", 1000, 32, "HALTED", 2, [8], None),
    ("+++.>++.<-.", 1000, 32, "HALTED", 11, [3, 2, 2], None),
    ("++++++++++.", 1000, 32, "HALTED", 11, [1], None),
    ("].+.", 1000, 32, "HALTED", 4, [0, 1], None),
    ("[.+]", 1000, 32, "HALTED", 4, [0], "{.+]"),
    ("+[.+]", 1000, 32, "HALTED", 34, [1, 2, 3, 4, 5, 6, 7, 8], None),
    ("+[.+]-.", 100, 32, "HALTED", 36, [1, 2, 3, 4, 5, 6, 7, 8, 8], None),
    ("+[]", 50, 32, "TIMEOUT", 50, [], None),
    ("+[.]", 1000, 8, "OUTPUT_LIMIT", 24, [1] * 8, None),
    ("[+.]-.", 1000, 32, "HALTED", 6, [1, 0], "{+.]-."),
    ("+++[>++<-]>.", 1000, 32, "HALTED", 27, [6], None),
    ("++[>+++[>+.<-]<-]>>.", 1000, 32, "HALTED", 66, [1, 2, 3, 4, 5, 6, 6], None),
    ("+>[.-]<[->+<.]>.+.", 1000, 32, "HALTED", 19, [0, 0, 0, 1], "+>{.-]<[->+<.]>.+."),
    ("+[>[+.]<-.]..", 1000, 64, "OUTPUT_LIMIT", 358, None, "+[>{+.]<-.]"),
    ("+[[-].]+.", 1000, 32, "HALTED", 11, [0, 1], None),
    ("++[-[-[-.]].].", 500, 32, "TIMEOUT", 500, [8], "++[-[-{-.]]"),
]


@pytest.mark.parametrize(
    ("program", "steps", "limit", "status", "taken", "output", "executed"), RECORDED, ids=[each[0] for each in RECORDED]
)
def test_programs_run_as_the_original_ran_them(program, steps, limit, status, taken, output, executed):
    """Against recorded runs of the original machine; the oracle of the other tests meets them, too."""
    bounds = dict(alphabet=9, memory_size=10, maximal_steps=steps, output_limit=limit)
    source = UTMSource(vocabulary=256, alphabet=9, memory=10, steps=steps)
    for found in (source.run(program, limit), reference.run(reference.given(program), **bounds)):
        assert (found[0], found[2], found[3]) == (status, taken, executed or program)
        if output is not None:
            assert found[1] == output


def test_five_thousand_random_programs_agree_with_the_definition():
    """Against plain Python: status, output, steps and executed program, over alphabets, memories and bounds."""
    draw = random.Random(1)
    statuses = []
    for _ in range(50):
        alphabet, memory = draw.choice([2, 3, 9, 17, 128, 255, 256]), draw.choice([1, 2, 10, 300])
        steps, limit = draw.choice([1, 30, 300, 2000]), draw.choice([1, 8, 64, 513])
        source = UTMSource(vocabulary=256, alphabet=alphabet, memory=memory, steps=steps)
        bounds = dict(alphabet=alphabet, memory_size=memory, maximal_steps=steps, output_limit=limit)
        for _ in range(100):
            program = "".join(draw.choices("+-><[].{", [2, 2, 1, 1, 1, 1, 2, 0.3], k=draw.choice([1, 10, 40, 200])))
            found = source.run(program, limit)
            assert found == reference.run(reference.given(program), **bounds), (program, bounds)
            statuses.append(found[0])
    assert all(statuses.count(status) > 500 for status in ("HALTED", "TIMEOUT", "OUTPUT_LIMIT"))


@pytest.mark.parametrize(
    "arguments",
    [
        dict(vocabulary=256),
        dict(vocabulary=256, alphabet=256, memory=100, steps=1000, program_length=1000, permute=False),
        dict(vocabulary=9, alphabet=9, steps=400, program_length=30, padding="zero"),
        dict(vocabulary=300, alphabet=17, memory=200, steps=1000, program_length=100, sampler="markov"),
    ],
    ids=["paper", "large alphabet", "zero padding", "markov"],
)
def test_rows_are_those_of_the_definition_token_for_token(arguments):
    """Against plain Python on the same random words."""
    counts = {"counts": COUNTS if arguments.get("sampler") == "markov" else None}
    settings = {name: value for name, value in arguments.items() if name != "sampler"}
    oracle = reference.UTMSource(**settings, **counts)
    assert_rows_are_those_of(oracle, UTMSource(**arguments), rows=20, length=100, vocabulary=arguments["vocabulary"])


@pytest.mark.parametrize("sampler", ["uniform", "markov"])
def test_a_lanes_rows_do_not_depend_on_who_shares_the_call(sampler):
    assert_rows_do_not_depend_on_the_call(UTMSource(vocabulary=256, memory=100, steps=1000, sampler=sampler))


@pytest.mark.parametrize(
    ("scale", "sampler", "empty", "length"),
    [(1, "uniform", 0.075, 10), (10, "uniform", 0.069, 81), (50, "uniform", 0.085, 183)],
)
def test_outputs_are_as_recorded(scale, sampler, empty, length):
    """Against statistics of the original machine at alphabet 128: the share of empty outputs and their mean length.

    The published figures come from an unknown number of programs, so the bands are 4 standard errors of ours and a
    tenth of theirs.
    """
    stream, _, _ = given(40, 100, 2)
    source = UTMSource(
        vocabulary=256, memory=10 * scale, steps=100 * scale, program_length=100 * scale, sampler=sampler
    )
    printed = torch.from_numpy(source.outputs(stream, 100, 512)[1]).double()
    assert abs((printed == 0).double().mean() - empty) < 4 * (empty / 4000) ** 0.5 + 0.1 * empty
    assert abs(printed.mean() - length) < 4 * printed.std() / 4000**0.5 + 0.1 * length


def test_the_markov_sampler_makes_richer_programs():
    """Against the uniform sampler at the same bounds: far fewer empty outputs, more tokens printed and in use."""
    stream, _, _ = given(10, 50, 2)
    found = {}
    for sampler in ("uniform", "markov"):
        source = UTMSource(vocabulary=256, memory=100, steps=1000, program_length=1000, sampler=sampler, permute=False)
        tokens, printed = source.outputs(stream, 50, 512)
        distinct = [len(set(row.tolist())) for row in tokens.reshape(-1, 512)]
        found[sampler] = ((printed == 0).mean(), printed.mean(), sum(distinct) / len(distinct))
    assert found["markov"][0] < found["uniform"][0] / 2
    assert found["markov"][1] > 1.5 * found["uniform"][1] and found["markov"][2] > found["uniform"][2]


def test_a_machine_without_a_compiler_is_told_what_to_do(monkeypatch, tmp_path):
    """Against the message, with an empty cache and no compiler, a wrong CC, and one that fails."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(UserError, match="the utm source .* needs a C compiler .* there is no cc, gcc, clang"):
        UTMSource(vocabulary=256)
    monkeypatch.setenv("CC", "nocompiler -m64")
    with pytest.raises(UserError, match="CC='nocompiler -m64' names none"):
        UTMSource(vocabulary=256)
    monkeypatch.setenv("CC", "/bin/false")
    with pytest.raises(UserError, match="could not be compiled by /bin/false"):
        UTMSource(vocabulary=256)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_damaged_cache_is_named(monkeypatch, tmp_path):
    """Against the message, for a cached library that is no library."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "whole"))
    UTMSource(vocabulary=256)
    (cached,) = (tmp_path / "whole/upscale").iterdir()
    # Another path: what was loaded under its name stays loaded.
    (tmp_path / "damaged/upscale").mkdir(parents=True)
    (tmp_path / "damaged/upscale" / cached.name).write_bytes(b"text")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "damaged"))
    with pytest.raises(UserError, match=f"cannot be loaded: .*{cached.name}.* Set XDG_CACHE_HOME"):
        UTMSource(vocabulary=256)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(alphabet=1), "alphabet is 1; allowed: 2 to 256"),
        (dict(alphabet=20, vocabulary=16), "alphabet is 20; allowed: 2 to 16 .at most the vocabulary."),
        (dict(alphabet=257, vocabulary=1000), "alphabet is 257; allowed: 2 to 256"),
        (dict(memory=0), "memory is 0; allowed: 1 to"),
        (dict(steps=2**31), "steps is 2147483648; allowed: 1 to"),
        (dict(program_length=0), "program_length is 0; allowed: 1 to"),
        (dict(sampler="order2"), "sampler is 'order2'; allowed: uniform, markov"),
        (dict(padding="none"), "padding is 'none'; allowed: repeat, zero"),
    ],
)
def test_mistakes_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        UTMSource(**{"vocabulary": 256, **arguments})
