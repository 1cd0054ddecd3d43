"""The recurrent sources on a CPU: all steps of a tile of rows in one call of compiled C (recurrent.c).

Rows are divided among as many threads as torch has. `upscale.sources.recurrent` defines what is computed; this gives
the same bits on every processor with a fused multiply-add (others are slow), but for the last bit of an embedding's
entry in 10^7, whose logarithm and cosine are the C library's.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

from upscale.machine import compiler
from upscale.sources.recurrent.program import Program

TILE = 6
"""Rows that the C code takes at a time, or a multiple: threads get whole tiles."""
SOURCE = Path(__file__).with_name("recurrent.c")
FLAGS = {torch.float32: compiler.VECTOR_FLAGS, torch.float64: (*compiler.VECTOR_FLAGS, "-DDOUBLE")}


class _Program(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("is_lstm", "is_greedy", "hidden", "hidden_panels", "token_panels")),
        *((name, ctypes.c_int64) for name in ("length", "seed_tokens")),
        *((name, ctypes.c_void_p) for name in ("x_table", "z_table", "recurrent", "head", "head_bias")),
    ]


@cache
def available() -> bool:
    """Whether there is a C compiler, or what one made before."""
    return all(compiler.available(SOURCE, flags) for flags in FLAGS.values())


@cache
def library(dtype: torch.dtype) -> ctypes.CDLL:
    return compiler.library(SOURCE, "data.sources: a recurrent source", FLAGS[dtype])


def write(
    program: Program, conditions: torch.Tensor, seeds: torch.Tensor, heights: torch.Tensor | None, temperature: float
) -> torch.Tensor:
    """Tokens (L, rows, length) int16, each row after its seed; see `upscale.sources.recurrent.fused.write`."""
    lanes, rows, length = conditions.shape
    called = library(program.embedding.dtype)
    units = called.upscale_recurrent_units()
    vocabulary = program.embedding.shape[1]
    hidden = program.weight_hidden.shape[2]
    gates = program.weight_hidden.shape[1] // hidden
    is_lstm = gates == 4

    def by_gate(tensor: torch.Tensor, of_input: bool) -> torch.Tensor:
        """(L, 4, hidden, ...): a GRU's third gate is its candidate's recurrent part, the fourth that of the input."""
        tensor = tensor.unflatten(1, (gates, hidden))
        if is_lstm:
            return tensor
        none = torch.zeros_like(tensor[:, :1])
        parts = [tensor[:, :2], none, tensor[:, 2:]] if of_input else [tensor[:, :2], tensor[:, 2:], none]
        return torch.cat(parts, dim=1)

    def packed(tensor: torch.Tensor, value: float = 0.0) -> torch.Tensor:
        """(L, panels, inner, 4, units) of (L, 4, columns, inner)."""
        filled = torch.nn.functional.pad(tensor, (0, 0, 0, -tensor.shape[2] % units), value=value)
        return filled.unflatten(2, (-1, units)).permute(0, 2, 4, 1, 3).contiguous()

    def packed_tokens(tensor: torch.Tensor, value: float) -> torch.Tensor:
        """The same of (L, vocabulary, inner), four times `units` tokens a panel."""
        filled = torch.nn.functional.pad(tensor, (0, 0, 0, -vocabulary % (4 * units)), value=value)
        return filled.unflatten(1, (-1, 4, units)).permute(0, 1, 4, 2, 3).contiguous()

    x_weight, z_weight = (packed(by_gate(weight, of_input=True)) for weight in program.weight_input.chunk(2, dim=-1))
    bias = by_gate(program.bias_input, of_input=True) + by_gate(program.bias_hidden, of_input=False)
    x_bias = packed(bias[..., None])
    z_bias = torch.zeros_like(x_bias)
    recurrent = packed(by_gate(program.weight_hidden, of_input=False))
    scale = temperature if temperature > 0 else 1.0
    head = packed_tokens(program.head_weight / scale, 0.0)
    head_bias = packed_tokens(program.head_bias[..., None] / scale, -torch.inf)
    embedding = program.embedding.contiguous()
    panels, half = x_weight.shape[1:3]
    tables = embedding.new_empty(2, lanes, vocabulary, panels, 4, units)
    tokens = torch.zeros(lanes, rows, length, dtype=torch.int16)
    tokens[..., : seeds.shape[2]] = seeds
    read = conditions.to(torch.int16).contiguous()
    met = None if heights is None else heights.contiguous()

    def table(task: tuple[int, int]) -> None:
        side, lane = task
        weights, biases = (x_weight, x_bias) if side == 0 else (z_weight, z_bias)
        called.upscale_recurrent_table(
            *(ctypes.c_int64(size) for size in (vocabulary, half, panels)),
            *map(_address, (embedding[lane], weights[lane], biases[lane], tables[side, lane])),
        )

    def walk(task: tuple[int, int, int]) -> None:
        lane, first, end = task
        settings = _Program(
            is_lstm=is_lstm,
            is_greedy=heights is None,
            hidden=hidden,
            hidden_panels=panels,
            token_panels=head.shape[1],
            length=length,
            seed_tokens=seeds.shape[2],
            x_table=tables[0, lane].data_ptr(),
            z_table=tables[1, lane].data_ptr(),
            recurrent=recurrent[lane].data_ptr(),
            head=head[lane].data_ptr(),
            head_bias=head_bias[lane].data_ptr(),
        )
        fits = called.upscale_recurrent_write(
            ctypes.byref(settings),
            ctypes.c_int64(end - first),
            _address(read[lane, first:end]),
            None if met is None else _address(met[lane, first:end]),
            _address(tokens[lane, first:end]),
        )
        if not fits:
            raise MemoryError(f"no memory for the hidden states of {end - first} rows")

    count = torch.get_num_threads()
    pieces, tiles = -(-count // lanes), -(-rows // TILE)
    bounds = [min(rows, tiles * piece // pieces * TILE) for piece in range(pieces + 1)]
    with ThreadPoolExecutor(count) as threads:
        list(threads.map(table, [(side, lane) for lane in range(lanes) for side in range(2)]))
        tasks = [(lane, first, end) for lane in range(lanes) for first, end in zip(bounds, bounds[1:], strict=False)]
        list(threads.map(walk, [task for task in tasks if task[1] < task[2]]))
    return tokens


def _address(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
