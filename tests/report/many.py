"""Twenty runs as a page must bear them, written with the project's own records and configs: three sources, three
widths, two seeds, and a fine-tuning from one of them against scratch, all on thirteen tasks."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy

from upscale.checkpoint import layout
from upscale.config import files as config_files
from upscale.evaluation.record import DiagnosticsRecord, EvaluationRecord, TextDiagnostics
from upscale.files import Record
from upscale.training.record import StepRecord

OPTIMA = {"dyck": 0.79, "ndfa": 1.1, "aut": 0.92, "champ": None, "champ_decimal": None, "toy": 0.5, "toy2": 0.7}
OPTIMA |= {"bits": 1.0, "bitsflip": 1.2, "bitsrep": 0.1, "wp": None, "linux": None, "code": None}
SOURCES, WIDTHS, SEEDS = ("lstm", "utm", "shuffle_dyck"), (64, 128, 192), (0, 1)
STEPS, BATCH, EVALUATIONS = 400, 16, 16


def write(folder: Path) -> list[Path]:
    """The directories of twenty runs below the folder."""
    made = []
    for source in SOURCES:
        for width in WIDTHS:
            for seed in SEEDS:
                made.append(folder / f"{source}.w{width}-{seed}")
                data = [f'data.sources=[{{"kind": "{source}"}}]']
                run(made[-1], [f"model.width={width}", f"run.seed={seed}", *data], 1.2 - width / 400, source)
    for name, origin in (("wp.pretrained-0", str(made[0])), ("wp.scratch-0", "null")):
        corpus = ["data.kind=corpus", 'data.corpora=[{"path": "corpora/wp"}]', f"init.from={origin}"]
        made.append(folder / name)
        run(made[-1], ["model.width=64", *corpus], 0.5 + 0.3 * (origin == "null"), None)
    return made


def run(folder: Path, settings: list[str], level: float, source: str | None, steps: int = STEPS) -> None:
    """One directory: losses and bits fall to what `level` says."""
    folder.mkdir(parents=True)
    heads = ["model.depth=4", "model.heads=4", "model.context=128", f"run.name={folder.name}", f"run.dir={folder}"]
    config = config_files.load(None, [*heads, f"schedule.instances={STEPS * BATCH}", *settings]).resolved()
    config_files.write(config, folder / layout.CONFIG)
    random = numpy.random.default_rng(zlib.crc32(folder.name.encode()))
    append(folder / layout.METRICS, step_records(random, level, source, steps))
    append(folder / layout.EVALUATIONS, evaluation_records(random, level, steps))
    append(folder / layout.DIAGNOSTICS, [diagnostics_record(random, level, steps)])


def append(path: Path, records: Sequence[Record] | Iterator[Record]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(record.as_object()) + "\n" for record in records)


def step_records(random, level: float, source: str | None, steps: int) -> Iterator[StepRecord]:
    for step in range(1, steps + 1):
        loss = 3 + level + (5 - level) * (1 + step / 20) ** -0.8 + random.normal(0, 0.08)
        excess = {"excess_bits_per_source": {source: loss - 2.5}} if source == "shuffle_dyck" else {}
        yield StepRecord(
            step=step,
            instances=step * BATCH,
            tokens=step * BATCH * 128,
            loss_bits_per_byte=loss,
            learning_rate=1e-3 * min(1.0, step / 40),
            global_batch=BATCH,
            active_blocks=min(4, 1 + step // 50),
            grad_norm=float(random.lognormal(-1, 0.3)),
            step_seconds=0.5,
            generate_seconds=0.05,
            tokens_per_second=4000.0 * (1 + random.normal(0, 0.02)),
            peak_memory_gib=1.5,
            world_size=2,
            skipped_steps=0,
            **({"loss_bits_per_source": {source: loss}} if source else {}),
            **excess,
        )


def evaluation_records(random, level: float, steps: int) -> Iterator[EvaluationRecord]:
    for place in range(EVALUATIONS + 1):
        step = steps * place // EVALUATIONS
        for task, optimum in OPTIMA.items():
            least = optimum or 2.5 + 1.5 * (len(task) % 3)
            bits = least + (8 - least) * (1 + step / 25) ** -(1.3 - 0.6 * level) + random.normal(0, 0.02)
            yield EvaluationRecord(
                step=step,
                instances=step * BATCH,
                task=task,
                split="generated" if optimum else "excerpt",
                bits_per_character=bits,
                standard_error=0.03,
                markov_bits_per_character=least + 0.4,
                markov_order=2,
                markov_published_bits_per_character=least + 0.5,
                markov_published_order=2,
                optimal_bits_per_character=optimum,
                samples=1000,
                skipped=None,
            )


def diagnostics_record(random, level: float, steps: int) -> DiagnosticsRecord:
    distances, positions = [4, 8, 16, 32, 64], [1, 2, 4, 8, 16, 32, 64]
    confidence = [0.05 + place / 10 for place in range(10)]
    texts = [
        TextDiagnostics(
            task=task,
            split="excerpt",
            positions=positions,
            bits_by_position=[8 - (2 - level) * (1 + place / 3) for place in range(len(positions))],
            calibration_error=0.02 + 0.02 * level,
            calibration_counts=[800 // (1 + place) for place in range(10)],
            calibration_confidence=confidence,
            calibration_accuracy=[max(0.0, each - 0.1 * level * each) for each in confidence],
        )
        for task in ("wp", "linux")
    ]
    return DiagnosticsRecord(
        step=steps,
        instances=steps * BATCH,
        distances=distances,
        induction_bits=[2 + level + 0.8 * place + random.normal(0, 0.1) for place in range(len(distances))],
        copy_accuracy=[max(0.0, 0.7 - 0.12 * place - 0.2 * level) for place in range(len(distances))],
        needle_recall=[0.6 - 0.3 * level, 0.5 - 0.3 * level, 0.4 - 0.3 * level, None],
        texts=texts,
    )
