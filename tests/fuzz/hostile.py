"""Hostile values, texts and bytes, and what reading them may end in."""

from __future__ import annotations

import contextlib
import faulthandler
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies

from upscale.errors import RunError, UserError

MEMORY_BYTES = 2 << 30
"""What a reader may ask for beyond what the process has: a number in a file of a few kilobytes never decides more."""
CPU_SECONDS = 60
"""What a reader may work for, far more than any needs; without it a text that multiplies hangs the tests."""

numbers = (
    strategies.integers(-3, 10)
    | strategies.sampled_from([2**31, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400, 1e308, 5e-324, -0.0])
    | strategies.floats()
)
texts = strategies.text(max_size=12) | strategies.sampled_from(
    ["", ".", "..", "/etc/passwd", "../x", "a/b", "\0", "\x1b[2J", "\u202e", "\ud800", "<script>", "$x$", "auto", "1e9"]
)
scalars = strategies.none() | strategies.booleans() | numbers | texts
trees = strategies.recursive(
    scalars,
    lambda inner: strategies.lists(inner, max_size=4) | strategies.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)


def changed(base: Any) -> strategies.SearchStrategy:
    """A tree of mappings, lists and scalars with one to three places replaced, removed or added to."""

    @strategies.composite
    def draw_from(draw) -> Any:
        tree = base
        for _ in range(draw(strategies.integers(1, 3))):
            tree = _changed_once(draw, tree)
        return tree

    return draw_from()


def _changed_once(draw: Callable, tree: Any) -> Any:
    if isinstance(tree, dict) and tree and draw(strategies.integers(0, 9)):
        key = draw(strategies.sampled_from(sorted(tree, key=str)))
        what = draw(strategies.sampled_from(["inside", "inside", "inside", "remove", "add"]))
        rest = {name: value for name, value in tree.items() if name != key}
        if what == "inside":
            return {**rest, key: _changed_once(draw, tree[key])}
        return rest if what == "remove" else {**tree, draw(texts): draw(trees)}
    if isinstance(tree, list) and tree and draw(strategies.integers(0, 9)):
        place = draw(strategies.integers(0, len(tree) - 1))
        return [*tree[:place], _changed_once(draw, tree[place]), *tree[place + 1 :]]
    return draw(scalars | trees)


@strategies.composite
def damaged(draw, content: bytes) -> bytes:
    """Bytes with a few of them changed, cut out, put in twice, or the end missing."""
    found = bytearray(content)
    for _ in range(draw(strategies.integers(1, 4))):
        place = draw(strategies.integers(0, max(0, len(found) - 1)))
        size = draw(strategies.integers(1, 16))
        kind = draw(strategies.sampled_from(["flip", "put", "cut", "twice", "end"]))
        if kind == "flip" and found:
            found[place] ^= draw(strategies.integers(1, 255))
        elif kind == "put":
            found[place : place + size] = draw(strategies.binary(min_size=size, max_size=size))
        elif kind == "cut":
            del found[place : place + size]
        elif kind == "twice":
            found[place:place] = found[place : place + size]
        elif kind == "end":
            del found[place:]
    return bytes(found)


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Asking for more than MEMORY_BYTES beyond what this process has is a MemoryError, and fails the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def little_time() -> Iterator[None]:
    """More than CPU_SECONDS of its own work ends this process, also inside of a library's C code, and tells where."""
    faulthandler.register(signal.SIGVTALRM, sys.__stderr__, chain=True)  # then the signal's default, which ends it
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        faulthandler.unregister(signal.SIGVTALRM)


def ends_well(read: Callable, *arguments, also: tuple[type[Exception], ...] = ()) -> Any:
    """What a reader returned, or None where it raised one clear error; anything else that it raises fails the test."""
    try:
        with little_memory(), little_time():
            return read(*arguments)
    except (UserError, RunError, *also) as error:
        message = str(error)
        assert message.strip() and len(message) < 20_000 and "Traceback" not in message
        return None
