"""A result of `upscale bench` as tables for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from upscale.bench.step import PARTS


def engine_of(result: dict) -> str:
    engine = result["config"]["engine"]
    return f"deepspeed stage {engine['zero_stage']}" if engine["name"] == "deepspeed" else engine["name"]


def title(result: dict) -> str:
    """What was measured, in two lines."""
    model, machine, ranks = result["config"]["model"], result["machine"], result["world_size"]
    passes = -(-result["rows_per_rank"] // result["micro_batch"])
    return (
        f"width {model['width']}, {result['active_blocks']} blocks awake, {result['parameters']:,} parameters, context "
        f"{model['context']}; {engine_of(result)}, {result['config']['engine']['precision']}, "
        f"{'compiled' if result['compiled'] else 'not compiled'}, checkpointing {model['checkpointing']}\n"
        f"{ranks} {'rank' if ranks == 1 else 'ranks'} on {machine.get('gpu') or machine['cpu']}; batch "
        f"{result['global_batch']}: {passes} x {result['micro_batch']} rows a rank ({result['micro_batch_found_by']})"
    )


def show(result: dict) -> None:
    """Print everything of a result that a person wants to see at once."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(title(result))
    console.print(_split(result))
    console.print(_rates(result))
    if result["by_operator"]:
        console.print(_operators(result["by_operator"]))
    for line in remarks(result):
        console.print(line)


def _split(result: dict) -> Table:
    table = _table("one step", "median s", "lowest", "highest", "share")
    whole = result["seconds"]["step"]["median"]
    for name in ("step", *PARTS, "rest"):
        one = result["seconds"][name]
        table.add_row(
            name, *(f"{one[key]:.4f}" for key in ("median", "lowest", "highest")), f"{one['median'] / whole:.1%}"
        )
    return table


def _rates(result: dict) -> Table:
    table = _table("", "median", "lowest", "highest")
    for name, label in (
        ("tokens_per_second", "tokens/s"),
        ("tokens_per_second_per_device", "tokens/s a device"),
        ("generator_rows_per_second", "generator rows/s"),
    ):
        table.add_row(label, *(f"{result[name][key]:,.0f}" for key in ("median", "lowest", "highest")))
    rate = result["model_flops_per_second_per_device"]
    table.add_row("model TFLOP/s a device", *(f"{rate[key] / 1e12:.4g}" for key in ("median", "lowest", "highest")))
    for name, other in result["beside"].items():
        ratio = other["times_the_engine"]
        table.add_row(f"{name}: times our step", *(f"{ratio[key]:.3f}" for key in ("median", "lowest", "highest")))
    return table


def _operators(found: dict) -> Table:
    table = _table("operator", "calls", "s", "share", "GFLOP/s", "alone")
    for one in found["operators"]:
        keys = ("flops_per_second", "alone_flops_per_second")
        speeds = [f"{one[key] / 1e9:.0f}" if key in one else "" for key in keys]
        table.add_row(one["name"], str(one["calls"]), f"{one['seconds']:.4f}", f"{one['share']:.1%}", *speeds)
    alone = found["products_alone_seconds"]
    table.add_row("products alone", "", f"{alone:.4f}", f"{alone / found['step_seconds']:.1%}", "", "")
    return table


def remarks(result: dict) -> list[str]:
    """MFU, memory and communication, each in a line."""
    lines = ["MFU not known: this device's peak is not"]
    if utilization := result["model_flops_utilization"]:
        computing = result["computing_flops_utilization"]
        peak = result["peak_flops"] / 1e12
        lines = [f"MFU {utilization:.1%} of {peak:.0f} TFLOP/s, {computing:.1%} in forward and backward passes alone"]
    lines.append(f"peak memory {result['peak_memory_gib']:.2f} GiB a rank")
    if collectives := result["communication"]:
        under_way, exposed = collectives["under_way_seconds"], collectives["exposed_seconds"]
        share = under_way / collectives["profiled_step_seconds"]
        alone = "" if exposed is None else f"; {exposed:.4f} s with nothing beside them"
        lines.append(
            f"collectives under way {under_way:.4f} s of a profiled step, {share:.1%}, waiting for other ranks "
            f"included{alone}"
        )
    return lines


def _table(*columns: str) -> Table:
    table = Table()
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    return table
