"""The Triton kernels, run by Triton's interpreter in a process of its own, against the slow references.

Triton must be told before it is imported, hence the process. What a GPU makes of them is for the tests marked gpu.
"""

import os
import sys
from pathlib import Path

import pytest
import torch

from tests import pace
from tests.reference.recurrent import recurrent_source
from tests.sources.test_recurrent import KINDS, given
from upscale.config import files as config_files
from upscale.config.schema import enriched_rows
from upscale.randomness.streams import Purpose, Stream

triton = pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
TOKEN_FOR_TOKEN = """
    lstm, hidden 38, two lanes:        dict(kind='lstm', lanes=2, rows=4, hidden=38)
    lstm, hidden 102, two tiles:       dict(kind='lstm', lanes=1, rows=7, hidden=102, length=9)
    lstm, warm, small vocabulary:      dict(kind='lstm', lanes=1, rows=3, hidden=7, vocabulary=11, temperature=0.5)
    lstm, greedy, one seed token:      dict(kind='lstm', lanes=1, rows=2, hidden=9, temperature=0.0, seed_tokens=1)
    gru, hidden 51, another seed:      dict(kind='gru', lanes=1, rows=4, hidden=51, seed=2**40 + 3)
    gru, warm:                         dict(kind='gru', lanes=1, rows=4, hidden=12, temperature=1.0)
"""


def check_tokens(kind, lanes, rows, length=11, vocabulary=256, seed_tokens=3, seed=1, **arguments):
    """Runs where Triton interprets: the fused kernel's rows against torch.nn's layers, all in float64."""
    from upscale.sources.recurrent import fused

    chosen = dict(vocabulary=vocabulary, seed_tokens=seed_tokens, **arguments)
    stream, conditions, seeds = given(lanes, rows, length, vocabulary, seed_tokens, seed)
    source = KINDS[kind](dtype=torch.float64, **chosen)

    def write(some, those):
        """Some lanes, and some of their rows."""
        part = stream.at(some)
        heights = source._cumulative_weights(part, rows, length - seed_tokens)
        heights = None if heights is None else heights[:, those]
        given_rows = conditions[some][:, those], seeds[some][:, those]
        return fused.write(source.program(part), *given_rows, heights, source.temperature)

    every = list(range(rows))
    written = write(list(range(lanes)), every)
    assert written.tolist() == recurrent_source(kind, **chosen).write(stream, conditions, seeds).tolist(), arguments
    assert torch.equal(write([lanes - 1], every[-1:]), written[-1:, -1:]), arguments


def check_words():
    """Runs where Triton interprets: the words of streams, 64-bit seeds and 32-bit lanes included."""
    from upscale.randomness import philox

    for seed, count in ((5, 3), (2**63 + 12345, 4100)):
        stream = Stream(seed, [5, 2**32 - 1, 0], [7, 0, 2**31 + 3])
        for dtype, expected in (
            (torch.int64, stream.bits(Purpose.TOKEN, count)),
            (torch.float32, stream.uniform(Purpose.TOKEN, count) * 2**24),
        ):
            words = torch.empty(3, -(-count // 4), 4, dtype=dtype)
            philox.words(words, (seed & 0xFFFFFFFF, seed >> 32), Purpose.TOKEN, stream.rounds, stream.lanes)
            assert torch.equal(words.flatten(1)[:, :count], expected)


def interpreted(call):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    code = f"import torch; torch.set_num_threads(1); from tests.sources.test_fused import *; {call}"
    done = pace.run([sys.executable, "-c", code], 240, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr


def test_the_kernels_are_the_references_in_any_company():
    """Against torch.nn.LSTM and GRU one row and token at a time; a row alone against itself in the full launch; and
    Philox against Stream on the CPU, which its own tests compare with the published vectors.
    """
    calls = [line.split(":", 1)[1].strip() for line in TOKEN_FOR_TOKEN.strip().splitlines()]
    interpreted("; ".join(["check_words()", *(f"check_tokens(**{call})" for call in calls)]))


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [38, 51, 102, 205])
@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_at_the_shipped_sizes(kind, hidden):
    """Against torch.nn's layers, over rows long enough for one wrong bit to show."""
    interpreted(f"check_tokens(kind={kind!r}, lanes=2, rows=3, hidden={hidden}, length=120)")


def test_a_draw_at_eight_ranks_is_spread_over_the_multiprocessors():
    """Of the shipped width 1024: 8 of the 64 lanes, 16 rows each, where one tile a lane left 124 of 132 idle."""
    from upscale.sources.recurrent import fused

    data = config_files.load(ROOT / "configs/w1024.yaml").resolved().data
    rows = enriched_rows(data)
    assert data.lanes // 8 * -(-rows // fused.ROWS) >= 32


def test_the_kernels_compile_for_hopper():
    """Against the machine code's own description: no spilled registers would be seen here, too much shared memory is.

    Needs no GPU; the assembler comes with Triton.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from upscale.sources.recurrent import fused

    tile = dict(ROWS=fused.ROWS, UNITS=fused.UNITS, DEPTH=fused.DEPTH)
    constants = dict(GATES=4, HIDDEN=128, VOCABULARY=256, GREEDY=False, **tile)
    kinds = dict.fromkeys(constants, "constexpr") | dict(length="i32", seed_tokens="i32")
    kinds |= dict(conditions="*i32", tokens="*i32")
    signature = {name: kinds.get(name, "*fp32") for name in fused._walk.arg_names}
    source = ASTSource(fused._walk, signature, constants)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    assert made.asm["cubin"] and made.metadata.shared < 227 * 1024
    assert "tf32" not in made.asm["ptx"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden", [38, 102, 205])
def test_on_a_gpu_the_kernel_writes_what_the_eager_path_writes(kind, hidden):
    """Against the eager path on the same GPU and on the CPU in float64, but for ties; and, in float32, by statistics.

    Two programs that share their seeds part at the first near tie, so whole rows agree in most cases and not in all.
    """
    stream, conditions, seeds = given(40, 13, 160)
    there = Stream(stream.seed, stream.lanes, stream.rounds, "cuda"), conditions.cuda(), seeds.cuda()
    exact = [KINDS[kind](vocabulary=256, hidden=hidden, dtype=torch.float64, eager=on) for on in (False, True)]
    rows = exact[0].write(*there).cpu()
    for other in (exact[1].write(*there).cpu(), exact[1].write(stream, conditions, seeds)):
        assert (rows == other).all(dim=-1).float().mean() > 0.95
    single = [KINDS[kind](vocabulary=256, hidden=hidden, eager=on).write(*there).cpu() for on in (False, True)]
    assert (single[0] == single[1]).float().mean() > 0.5
    distinct = [sum(len(row.unique()) for row in written.flatten(0, 1)) / (40 * 13) for written in single]
    assert abs(distinct[0] - distinct[1]) < 0.05 * distinct[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_streams_are_the_cpus():
    """Against the CPU: words, and uniform numbers, bit for bit."""
    here = Stream(2**63 + 9, [5, 2**32 - 1], [7, 2**31])
    there = Stream(here.seed, here.lanes, here.rounds, "cuda")
    assert torch.equal(there.bits(Purpose.TOKEN, 5001).cpu(), here.bits(Purpose.TOKEN, 5001))
    assert torch.equal(there.uniform(Purpose.TOKEN, 50, 101).cpu(), here.uniform(Purpose.TOKEN, 50, 101))
