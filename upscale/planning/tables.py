"""Estimates as text and as records."""

from __future__ import annotations

from collections.abc import Sequence

from upscale import schedule
from upscale.console.text import aligned_table, duration, size
from upscale.model.costs import flops_per_token, parameters
from upscale.planning import memory
from upscale.planning.estimate import Estimate, run_flops


def engine_name(one: Estimate) -> str:
    engine = one.config.engine
    if engine.name == "deepspeed":
        return f"deepspeed stage {engine.zero_stage}"
    return "fsdp" if engine.shard_ranks in ("auto", one.cluster.ranks) else f"fsdp, shards of {engine.shard_ranks}"


def record(one: Estimate) -> dict:
    """Everything of an estimate, with units in the names."""
    return {
        "engine": engine_name(one),
        "checkpointing": one.config.model.checkpointing,
        "gpus": one.cluster.ranks,
        "fits": one.fits,
        "parameters": parameters(one.config.model),
        "global_batch": one.global_batch,
        "micro_batch": one.micro_batch,
        "passes": one.passes,
        "state_bytes": one.states,
        "activation_bytes": one.activation_bytes,
        "peak_bytes": one.rank_bytes,
        "sent_bytes_per_step": one.traffic.sent_bytes,
        "compute_seconds": one.compute_seconds,
        "optimizer_seconds": one.optimizer_seconds,
        "exposed_communication_seconds": one.exposed_seconds,
        "step_seconds": one.step_seconds,
        "tokens_per_second": one.tokens_per_second,
        "model_flops_utilization": one.model_flops_utilization,
        "run_seconds": one.run_seconds,
        "gpu_hours": one.gpu_hours,
        "checkpoint_bytes": one.checkpoint_bytes,
        "checkpoint_seconds": one.checkpoint_seconds,
    }


def details(one: Estimate) -> str:
    """The config as it is written, line by line."""
    config, model = one.config, one.config.model
    flops = flops_per_token(model, model.depth)
    states = ", ".join(f"{kind} {size(count)}" for kind, count in one.states.items() if count)
    rows = [row for row in (1, 4, 16, 64) if row <= one.rows_of_busiest_rank]
    by_rows = ", ".join(f"{size(memory.activation_bytes(config, row))} for {row}" for row in rows)
    lines = {
        "model": f"width {model.width}, {model.depth} blocks ({model.block}), {parameters(model):,} parameters",
        "work": f"{flops * model.context:.3g} FLOP an instance, {run_flops(config):.3g} for "
        f"{config.schedule.instances:,} instances",
        "as written": f"{engine_name(one)}, {config.engine.precision}, checkpointing {model.checkpointing}, "
        f"{one.cluster.ranks} GPUs, batch {one.global_batch}",
        "states": f"{size(sum(one.states.values()))} a GPU: {states}",
        "activations": f"micro-batches (rows): {by_rows}, checkpointing {model.checkpointing}",
        "checkpoint": f"{size(one.checkpoint_bytes)}, about {one.checkpoint_seconds:.1f} s to write at 1 GB/s a rank",
    }
    if one.fits:
        share = one.exposed_seconds / one.step_seconds
        lines["passes"] = f"{one.passes} of {one.micro_batch} rows a GPU and step; {size(one.rank_bytes)} of memory"
        lines["communication"] = (
            f"{size(one.traffic.sent_bytes)} sent a GPU and step, {one.exposed_seconds:.3f} s of it not hidden, "
            f"{share:.0%} of the step"
        )
        lines["time"] = (
            f"{one.step_seconds:.3f} s a step, {one.tokens_per_second:,.0f} tokens/s, MFU "
            f"{one.model_flops_utilization:.0%}; {duration(one.run_seconds)} in all, {one.gpu_hours:,.0f} GPU hours"
        )
    wide = max(map(len, lines))
    return "\n".join(f"{name.ljust(wide)}  {text}" for name, text in lines.items())


def comparison(estimates: Sequence[Estimate]) -> str:
    """One line a way to compute the same batch."""
    header = ("engine", "checkpointing", "rows x passes", "GB a GPU", "not hidden", "tokens/s", "MFU", "in all")
    body = []
    for one in estimates:
        name, stored = engine_name(one), one.config.model.checkpointing
        if one.fits:
            body.append(
                (
                    name,
                    stored,
                    f"{one.micro_batch} x {one.passes}",
                    f"{one.rank_bytes / 1e9:.1f}",
                    f"{one.exposed_seconds:.3f} s",
                    f"{one.tokens_per_second:,.0f}",
                    f"{one.model_flops_utilization:.0%}",
                    duration(one.run_seconds),
                )
            )
        else:
            body.append((name, stored, "-", f"{one.rank_bytes / 1e9:.1f}", "-", "-", "-", "does not fit"))
    return aligned_table(header, body, words=len(header))


def advice(written: Estimate, estimates: Sequence[Estimate]) -> str:
    """What to run, and what does not work as written."""
    lines = []
    best = estimates[0]
    if not written.fits:
        usable = written.cluster.device.memory_bytes * memory.USABLE_MEMORY
        given = written.config.engine.micro_batch
        tried = "one row" if given == "auto" else f"engine.micro_batch = {given}"
        lines.append(
            f"As written it does not fit: states and {tried} take {size(written.rank_bytes)}, and "
            f"{size(usable)} of each GPU can be used."
        )
    if not best.fits:
        lines.append(
            "Nothing fits: give more GPUs (states shrink with them under stage 3 and fsdp), GPUs with more memory, or "
            "a smaller model.width."
        )
        return "\n".join(lines)
    engine = best.config.engine
    chosen = [f"engine.name={engine.name}"]
    if engine.name == "deepspeed":
        chosen.append(f"engine.zero_stage={engine.zero_stage}")
    elif engine.shard_ranks != "auto":
        chosen.append(f"engine.shard_ranks={engine.shard_ranks}")
    chosen += [f"engine.micro_batch={best.micro_batch}", f"model.checkpointing={best.config.model.checkpointing}"]
    lines.append(f"Fastest by this estimate: {' '.join(chosen)}")
    if best.balance < 0.95:
        lines.append(
            f"Only {best.balance:.0%} of the rows are real, because {best.config.data.lanes} lanes do not divide "
            f"evenly over {best.cluster.ranks} GPUs: use a number that divides data.lanes, or other lanes in a new run."
        )
    rows = best.rows_of_busiest_rank
    if rows < 8:
        smallest = schedule.batch_size(0, best.config.schedule, best.config.data.lanes)
        lines.append(
            f"Each GPU gets {rows} of the batch's {best.global_batch} rows (at first {smallest} rows over all GPUs): "
            "reading weights, not computing, bounds such steps. Fewer GPUs or a larger schedule.batch.end use them "
            "better."
        )
    return "\n".join(lines)


def scaling(found: Sequence[tuple[str, int, Estimate]]) -> str:
    """Efficiency is tokens per second and GPU, against the fewest GPUs that fit in the same kind of scaling."""
    header = ("scaling", "GPUs", "batch", "engine", "rows x passes", "step", "tokens/s", "MFU", "efficiency", "in all")
    body: list[tuple[str, ...]] = []
    reference: dict[str, float] = {}
    for kind, gpus, one in found:
        if not one.fits:
            body.append((kind, str(gpus), str(one.global_batch), "does not fit", *["-"] * 6))
            continue
        per_gpu = one.tokens_per_second / gpus
        checkpointing = "" if one.config.model.checkpointing == "none" else ", checkpointing"
        body.append(
            (
                kind,
                str(gpus),
                str(one.global_batch),
                engine_name(one) + checkpointing,
                f"{one.micro_batch} x {one.passes}",
                f"{one.step_seconds:.3f} s",
                f"{one.tokens_per_second:,.0f}",
                f"{one.model_flops_utilization:.0%}",
                f"{per_gpu / reference.setdefault(kind, per_gpu):.0%}",
                duration(one.run_seconds),
            )
        )
    return aligned_table(header, body, words=len(header))
