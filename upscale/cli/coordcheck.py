"""`upscale coordcheck`: whether the model of a config keeps to muP, by the `mup` package and by training it."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from upscale.config import Config
from upscale.config import files as config_files
from upscale.console import command
from upscale.coordcheck import coordinates, figure, roles
from upscale.coordcheck.widths import small
from upscale.errors import RUN_ERROR_EXIT_CODE, UserError
from upscale.files import replacing, write_json
from upscale.model import parametrization

WIDTHS = (64, 128, 256, 512)
PICTURES = (".png", ".svg", ".pdf")


def main(arguments: list[str]) -> int:
    parser = command.parser(
        "coordcheck",
        "Compare every parameter with the mup package, and draw the coordinate check: activations over widths.",
    )
    command.add_config(parser)
    parser.add_argument(
        "--widths",
        type=_widths,
        default=WIDTHS,
        metavar="W,W,W",
        help=f"what is trained; default: {','.join(map(str, WIDTHS))}",
    )
    parser.add_argument(
        "--to",
        type=Path,
        default=Path("coordinate_check.png"),
        metavar="FILE",
        help="the picture, .png, .svg or .pdf, with a .json beside it; default: coordinate_check.png",
    )
    options = parser.parse_intermixed_args(arguments)
    if options.to.suffix not in PICTURES:
        raise UserError(f"--to {options.to}: must end in {', '.join(PICTURES)}")
    config = config_files.load(options.config, options.overrides).resolved()
    made = small(config, options.widths)
    widths = [one.model.width for one in made]

    compared = roles.compare(config, sorted({config.model.width, *widths}))
    measured = []
    for one in made:
        print(f"training {coordinates.STEPS} steps at width {one.model.width}", file=sys.stderr, flush=True)
        model = parametrization.build(one)
        compared += roles.drawn(one, model)
        measured.append(coordinates.measure_plainly(one, model))
    found = coordinates.slopes(widths, measured)

    deviations = deviating(compared, found)
    _write(options.to, config, widths, measured, found, compared, deviations)
    title = f"{config.run.name}, width {config.model.width}, block {config.model.block}"
    print(f"{title}: beside the mup package, base width {config.mup.base_width}\n")
    print(figure.roles_table(compared, config.model.width))
    print(f"\nslopes over widths {', '.join(map(str, widths))}, flat up to {coordinates.LARGEST_SLOPE}\n")
    print(figure.slopes_table(found))
    print(f"\npicture in {options.to}, figures in {options.to.with_suffix('.json')}")
    if not deviations:
        print("muP holds")
        return 0
    print("muP is broken:\n" + "\n".join(f"  {line}" for line in deviations))
    return RUN_ERROR_EXIT_CODE


def deviating(compared: list[roles.Comparison], found: dict[str, coordinates.Coordinate]) -> list[str]:
    """One line for each number that is not what muP asks for; of one at several widths, the last of them."""
    wrong = {(one.name, one.quantity): one for one in compared if one.deviates}
    lines = [
        f"{one.name} ({one.role}): {one.quantity} {one.ours:.4g} at width {one.width}, should be {one.expected:.4g}"
        for one in wrong.values()
    ]
    for name, one in found.items():
        for kind in coordinates.steep(name, one):
            slope = getattr(one, kind)
            lines.append(f"{name}: its {kind} goes with the width to the power {slope:.2f}, should be near 0")
    return lines


def _write(
    to: Path,
    config: Config,
    widths: list[int],
    measured: list[dict[str, coordinates.Coordinate]],
    found: dict[str, coordinates.Coordinate],
    compared: list[roles.Comparison],
    deviations: list[str],
) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    of_model = f"muP {'on' if config.mup.enabled else 'off'}, block {config.model.block}, {config.optimizer.kind}"
    with replacing(to) as file:
        figure.draw(file, to.suffix[1:], of_model, widths, measured)
    plain = dataclasses.asdict
    result = {
        "versions": config_files.versions(),
        "widths": widths,
        "values": {
            width: {name: plain(one) for name, one in each.items()}
            for width, each in zip(widths, measured, strict=True)
        },
        "slopes": {name: plain(one) for name, one in found.items()},
        "roles": [plain(one) for one in compared],
        "deviations": deviations,
        "config": config_files.as_tree(config),
    }
    write_json(to.with_suffix(".json"), result)


def _widths(text: str) -> list[int]:
    if not all(part.isdigit() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} must be whole numbers with commas between them, as in 64,128,256")
    return [int(part) for part in text.split(",")]
