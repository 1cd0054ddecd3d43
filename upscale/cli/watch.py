"""`upscale watch`: the report's page on this machine, renewed while runs train."""

from __future__ import annotations

import argparse
from pathlib import Path

from upscale.console import command
from upscale.console.text import harmless
from upscale.errors import UserError
from upscale.report import watch


def main(arguments: list[str]) -> int:
    parser = command.parser("watch", "The report's page of runs at an address of this machine, renewed as they train.")
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run directories, or folders of them such as a study's"
    )
    parser.add_argument("--port", type=_port, default=8642, metavar="N", help="default: 8642; 0: one that is free")
    parser.add_argument("--every", type=_seconds, default=20.0, metavar="SECONDS", help="between looks; default: 20")
    options = parser.parse_args(arguments)
    try:
        server = watch.Server(watch.Watcher(options.runs, options.every), options.port)
    except ValueError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(
            f"cannot listen on port {options.port} of {watch.HOST}: {error.strerror}; choose another with --port"
        ) from None
    port = server.server_address[1]
    runs = harmless(", ".join(map(str, options.runs)))
    print(f"{runs}: http://{watch.HOST}:{port}/ (Ctrl-C ends it)")
    print(f"from another machine: ssh -L {port}:{watch.HOST}:{port} HOST, then the same address there", flush=True)
    server.serve_forever()
    return 0


def _port(text: str) -> int:
    return _within(text, int, 0, 65535)


def _seconds(text: str) -> float:
    return _within(text, float, 1, 86400)


def _within(text: str, kind: type, low: int, high: int):
    try:
        number = kind(text)
    except ValueError:
        number = None
    if number is None or not low <= number <= high:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number from {low} to {high}")
    return number
