"""The typed config: its sections, and what they may not say together. Field docstrings give unit and range.

files.py reads a `Config` from YAML and overrides, with every problem at once, and writes it. `Config.resolved` replaces
every `auto` that does not depend on the machine.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from upscale import optim
from upscale.config.finetuning import CorpusConfig, InitConfig, Part, problems_of_fine_tuning
from upscale.config.protocols import Control, ScheduleConfig, SeedsConfig, problems_of_protocols
from upscale.model import blocks
from upscale.optim.muon import MuonSettings
from upscale.settings import AUTO, Auto, Count, CountOrZero, NotNegative, Positive, Section, Share, integral
from upscale.sources import KINDS, AnySource, problems_of_sources

BYTES = 256

if TYPE_CHECKING:
    BlockKind: TypeAlias = str
    OptimizerKind: TypeAlias = str
else:
    BlockKind = Literal[tuple(blocks.KINDS)]
    OptimizerKind = Literal[tuple(optim.KINDS)]


class RunConfig(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Name of the run: letters, digits, '.', '_' and '-'."""
    dir: str = AUTO
    """Run directory; auto: runs/NAME below the current folder."""
    seed: CountOrZero = 0
    """Seed of everything random: weights, lanes, dropout."""
    seeds: SeedsConfig = SeedsConfig()
    """Seeds of single things that are random, where they must differ from `seed`."""
    steps: Count | None = None
    """Stop after so many steps in all, whatever the schedule says; null: at schedule.instances."""
    minutes: Positive | None = None
    """Stop with the first step that begins after so many minutes of training in all, over restarts: drawing rows and
    steps count, evaluations, checkpoints and starting do not; null: at schedule.instances."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto: continue from the newest valid checkpoint if there is one; must: fail without one; never: refuse a used
    directory."""


class ModelConfig(Section):
    block: BlockKind = "paper"
    """What the model is a stack of (upscale/model/blocks): paper: norms after, ReLU, learned positions; llama: RMSNorm
    before, RoPE, SwiGLU, no biases; prenorm: RMSNorm before, RoPE, normalised queries and keys, squared ReLU."""
    width: Count = 1024
    """Size of the residual stream, a multiple of `heads`."""
    depth: Count | Auto = AUTO
    """Blocks; auto: round((ln width - 5.039) / 0.0555) (Levine et al., paper section 6.1)."""
    heads: Count | Auto = AUTO
    """Attention heads; auto: width / 128, at least 1."""
    context: Annotated[int, BeforeValidator(integral), Field(ge=2)] = 512
    """Positions the model sees; a row holds one token more."""
    vocabulary: Annotated[int, BeforeValidator(integral), Field(ge=2, le=1 << 15)] = BYTES
    """Token ids; bytes need 256, and more are for sources whose tokens are no bytes. Above 256, rows are int16."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout probability: after each norm of the paper's block, in others of what attention and feed-forward add."""
    dropout_keys: Literal["rank", "row"] = "rank"
    """What keys dropout's masks besides the step: the rank (no cost), or the row (equal losses in any world)."""
    plain_blocks: CountOrZero = 8
    """Leading blocks without a progressive gate."""
    group_blocks: Count = 8
    """Blocks that wake together."""
    qk_norm: bool = False
    """Normalise queries and keys per head (Wortsman et al. 2023); attention is then scaled by 1/sqrt(head size). The
    prenorm block always does."""
    compile: bool | Auto = AUTO
    """torch.compile per block; auto: with a GPU, but not under ZeRO stage 3."""
    checkpointing: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again instead of keeping it: nothing; what is cheap, so that matrix products and
    attention are kept; or every block."""


class MupConfig(Section):
    base_width: Count = 640
    """Width at which the learning rate was tuned."""
    enabled: bool = True
    """False: one learning rate for all parameters, for comparisons only."""


class SpikeConfig(Section):
    window: Count = 100
    """Losses of applied steps that a step's loss is compared with; before there are so many nothing is a spike."""
    factor: Annotated[float, Field(gt=1)] = 1.5
    """A loss above this multiple of their median is a spike."""
    action: Literal["skip", "rollback"] = "skip"
    """skip: leave the step's update out; rollback: also undo the steps since the newest checkpoint."""
    max_rollbacks: Count = 3
    """Rollbacks with no regular checkpoint between them before the run stops."""


class OptimizerConfig(Section):
    kind: OptimizerKind = "adamw"
    """adamw: AdamW for every parameter; muon: Muon for hidden matrices, AdamW for all others."""
    muon: MuonSettings = MuonSettings()
    """muon only: how hidden matrices are trained."""
    learning_rate: Positive = 3e-4
    """Base learning rate at mup.base_width."""
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    """AdamW's decay rates of the two moments."""
    epsilon: Positive = 1e-8
    """AdamW's denominator term."""
    weight_decay: NotNegative = 0.01
    """AdamW's decoupled weight decay."""
    clip: Positive = 1.0
    """Largest global gradient norm."""
    z_loss: NotNegative = 0.0
    """Coefficient of the mean squared log of the softmax's denominator, added to the loss in nats against output logits
    that drift away (Chowdhery et al. 2022 use 1e-4); 0: none. The logged loss is without it."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on the learning rate for each step away from the head: depth of them for the first block, one more for the
    embeddings; 1: none."""
    freeze: list[Part] = []
    """Parts that keep their weights; they take no part in the gradient's norm."""
    max_skipped_steps: CountOrZero = 20
    """Steps in a row that may be skipped, for a non-finite loss or gradient or as spikes, before the run stops."""
    spike: SpikeConfig | None = None
    """What to do about a loss far above the recent ones; null: nothing."""


class ResetConfig(Section):
    constant: Share = 0.145
    """Share of the enriched rows that becomes constant rows (20 of 138 in the paper)."""
    noise: Share = 0.145
    """Share of the enriched rows that becomes uniform noise."""


class DataConfig(Section):
    kind: Literal["synthetic", "corpus"] = "synthetic"
    """Where rows come from: sources that write them as training goes, or random windows of prepared texts."""
    corpora: list[CorpusConfig] = []
    """corpus only: the texts. The keys below other than `lanes`, `first_target` and `ahead` are for synthetic rows
    only."""
    split: Literal["train", "validation", "test"] = "train"
    """corpus only: which part of the texts is trained on."""
    lanes: Count = 64
    """Independent buffers; at least one per rank. The lanes, not the ranks, decide which rows are trained on."""
    draw: Count | Auto = AUTO
    """Rows a lane draws in a round, at most; auto: its share of the full batch."""
    enrich: Positive = 2.0
    """Rows a lane enriches in a round, as a multiple of `draw`."""
    buffer: Annotated[float, Field(ge=1)] = 20.0
    """Rows in a lane's buffer, as a multiple of the enriched rows."""
    reset: ResetConfig = ResetConfig()
    iterate: bool = True
    """False: programs read fresh random rows instead of the buffer (the paper's noit)."""
    control: Control = "none"
    """Synthetic rows only: none: as they were written; shuffled: each training row's tokens in random order; pairs:
    each a random row that is as likely to have two tokens side by side as the row that was written. What is in the
    buffer stays as it was, and so does which places are targets. They tell structure from statistics."""
    sources: Annotated[list[AnySource], Field(min_length=1)] = [KINDS["lstm"].model_validate({"kind": "lstm"})]
    first_target: Count = 1
    """Place of the first token of a row that is a target: a frame's tokens leave out an automaton's first frame."""
    ahead: Literal["auto", "none", "thread", "workers"] = "auto"
    """How the next step's rows are drawn while one trains, without changing them: thread: in a thread, on a GPU with a
    stream of its own; workers: in processes, on the CPU also where a GPU trains; none: not at all, a step begins with
    its rows; auto: none without a GPU, thread with one, but workers where a source would launch thousands of kernels
    there for a draw (docs/sources.md)."""
    workers: Count | Auto = AUTO
    """ahead: workers only: processes a rank, at most one a lane; auto: the rank's share of the cores but one."""

    @property
    def masked(self) -> bool:
        """Whether rows tell, token by token, which are targets."""
        return self.kind == "synthetic" and any(source.masked for source in self.sources)


class EngineConfig(Section):
    name: Literal["deepspeed", "fsdp"] = "deepspeed"
    """What trains over ranks: DeepSpeed's ZeRO, or PyTorch's own FSDP2; both give the same losses."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """deepspeed only: what is divided over ranks: 1 optimizer state, 2 and gradients, 3 and weights."""
    reshard: bool = True
    """fsdp only: true frees a block's gathered weights after its forward pass and gathers them again for its backward
    pass; false keeps them until the step's last backward pass, for more memory and less traffic."""
    shard_ranks: Count | Auto = AUTO
    """fsdp only: consecutive ranks that divide weights, gradients and optimizer state among them, a divisor of the
    number of ranks; groups of them hold copies of each other. The GPUs of a node: hybrid sharding; auto: all ranks."""
    overlap: bool | Auto = AUTO
    """deepspeed only, stages 1 to 3: reduce gradients while the backward pass goes on, for a second bucket's memory;
    auto: true, but false at stage 2, where the host would wait in every pass. (FSDP2 always does.)"""
    bucket: Count | Auto = AUTO
    """deepspeed only, stages 1 to 3: gradients, as numbers, that are reduced at once; auto: those of a block, at least
    16,777,216 (64 MiB)."""
    prefetch_blocks: Count = 1
    """fsdp and stage 3: blocks whose weights are gathered ahead of the one that computes."""
    precision: Literal["auto", "bf16", "fp32"] = AUTO
    """bf16: matrix products in bfloat16, weights, norms and sums in float32; fp32: products in float32 too; auto: bf16
    where every rank's device has bfloat16 instructions, fp32 elsewhere. A run keeps what it began with."""
    micro_batch: Count | Auto = AUTO
    """Rows a rank passes through the model at once; auto: from the device's memory."""
    timeout_seconds: Annotated[float, Field(ge=1)] = 600.0
    """How long a step, or writing a checkpoint, may take before the ranks conclude that one of them hangs, and end;
    compilation counts."""

    @property
    def in_bfloat16(self) -> bool:
        """Whether matrix products are computed in bfloat16; LookupError as long as `precision` is auto."""
        if self.precision == AUTO:
            raise LookupError("engine.precision is auto: `upscale.precision.settle` chooses it for a run's devices")
        return self.precision == "bf16"


class EvaluationConfig(Section):
    every: CountOrZero = 500_000
    """Instances between evaluations in the loop; 0: none, not even at the end."""
    tasks: Annotated[list[str], Field(min_length=1)] | Literal["all"] = "all"
    """Names of the tasks and texts to measure."""
    slices: Count = 4_000
    """Slices per task, each predicting its last character."""
    data_dir: str | None = None
    """Folder with full texts, or with corpora that `upscale prepare` wrote, instead of the shipped excerpts."""


class CheckpointConfig(Section):
    every: CountOrZero = 500_000
    """Instances between checkpoints; 0: only at the end."""
    every_steps: Count | None = None
    """Steps between checkpoints, for short runs; overrides `every`."""
    keep: Count = 3
    """Newest checkpoints to keep."""
    milestones: CountOrZero = 5_000_000
    """Instances between checkpoints that are kept for ever; 0: none."""
    asynchronous: bool = True
    """Write in a thread: training waits for the copy in memory only."""


class ProfileConfig(Section):
    start: Count
    """First step to profile, counting from 1; give the first steps, which warm up and compile, a miss."""
    steps: Count
    """How many steps; traces grow with them, so few are best."""


class TrackingConfig(Section):
    log_every: Count = 10
    """Steps between logged lines."""
    wandb: Literal["offline", "online", "disabled"] = "offline"
    """Where Weights & Biases keeps its copy of the metrics."""
    stability: bool = False
    """Log the largest attention logit, the activations' size and the gate of every block at each logged step, from an
    extra forward pass over two rows a rank, and how large the step's update is beside the weights."""
    samples: CountOrZero = 8
    """Rows of the sources' output written to samples/ at each evaluation."""
    profile: ProfileConfig | None = None
    """Steps of which every rank writes torch's profiler trace, and on a GPU a memory snapshot, to profile/ in the run
    directory; null: none. It slows those steps down and changes nothing that they compute."""


class Config(Section):
    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    mup: MupConfig = MupConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    data: DataConfig = DataConfig()
    engine: EngineConfig = EngineConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    init: InitConfig = InitConfig()

    def seed(self, what: Literal["weights", "rows", "order"]) -> int:
        """The seed of one of the things that are random: `run.seeds`, or `run.seed` where that is null."""
        own = getattr(self.run.seeds, what)
        return self.run.seed if own is None else own

    def resolved(self) -> Config:
        """The same config with every `auto` replaced that does not depend on the machine."""
        model, data = self.model, self.data
        model = model.model_copy(update={"depth": depth_of(model), "heads": heads_of(model)})
        draw = rows_per_lane(self.schedule, data.lanes) if data.draw == AUTO else data.draw
        sources = [source.resolved(model) for source in data.sources]
        directory = str(Path("runs") / self.run.name) if self.run.dir == AUTO else self.run.dir
        changed = self.with_values(run={"dir": directory}, data={"draw": draw, "sources": sources})
        return changed.model_copy(update={"model": model})

    def with_values(self, **sections: dict[str, Any]) -> Config:
        """The config with other values of some sections' keys, which are not validated."""
        changed = {name: getattr(self, name).model_copy(update=values) for name, values in sections.items()}
        return self.model_copy(update=changed)


def depth_of(model: ModelConfig) -> int:
    """Blocks for the width (Levine et al. as used by the paper): 384 gives 16, 1024 gives 34, 4096 gives 59."""
    return round((math.log(model.width) - 5.039) / 0.0555) if model.depth == AUTO else model.depth


def heads_of(model: ModelConfig) -> int:
    """Attention heads: of size 128 unless given."""
    return max(1, model.width // 128) if model.heads == AUTO else model.heads


def rows_per_lane(schedule: ScheduleConfig, lanes: int) -> int:
    """A lane's share of the largest global batch."""
    return math.ceil(max(schedule.batch.start, schedule.batch.end) / lanes)


def enriched_rows(data: DataConfig) -> int:
    """Rows a lane enriches in a round; `data` must be resolved."""
    return max(1, round(data.enrich * data.draw))


def buffer_rows(data: DataConfig) -> int:
    """Rows in a lane's buffer; `data` must be resolved."""
    return max(round(data.buffer * enriched_rows(data)), data.draw)


def can_step(optimizer: OptimizerConfig, engine: EngineConfig) -> bool:
    """Whether the engine leaves the optimizer what it needs."""
    divided = engine.name == "deepspeed" and engine.zero_stage > 0
    return not (divided and optim.KINDS[optimizer.kind].whole_matrices)


def problems_between_sections(sections: dict[str, Any]) -> list[tuple[str, str]]:
    """Impossible combinations as (key, message), among those of the sections that are valid by themselves."""
    found: list[tuple[str, str]] = []
    model, schedule, data, run, evaluation, optimizer, checkpoint, tracking, engine = (
        sections.get(name)
        for name in ("model", "schedule", "data", "run", "evaluation", "optimizer", "checkpoint", "tracking", "engine")
    )
    if model:
        heads = heads_of(model)
        if model.width % heads:
            near = [w for w in range(model.width, model.width + heads) if w % heads == 0]
            found.append(
                (
                    "model.width",
                    f"{model.width} is not a multiple of model.heads = {heads}; the next that is: {near[0]}",
                )
            )
        else:
            found += blocks.KINDS[model.block].problems(model, heads)
        if depth_of(model) < 1:
            found.append(
                (
                    "model.depth",
                    f"auto gives {depth_of(model)} blocks at width {model.width}; give a depth of at least 1",
                )
            )
    if checkpoint and optimizer and optimizer.spike and optimizer.spike.action == "rollback":
        message = "rollback needs checkpoints during the run: set checkpoint.every or checkpoint.every_steps"
        regular = checkpoint.every or checkpoint.every_steps or checkpoint.milestones
        found.extend([] if regular else [("optimizer.spike.action", message)])
    if optimizer and engine and not can_step(optimizer, engine):
        message = (
            f"{optimizer.kind} updates whole matrices, but DeepSpeed's ZeRO stage {engine.zero_stage} divides them "
            "into flat partitions: set engine.zero_stage=0 or engine.name=fsdp, or optimizer.kind=adamw"
        )
        found.append(("optimizer.kind", message))
    if optimizer and optimizer.kind != "muon" and optimizer.muon != MuonSettings():
        found.append(("optimizer.muon", "is read with optimizer.kind=muon only; set that, or leave it out"))
    if data:
        if data.reset.constant + data.reset.noise > 1:
            found.append(
                ("data.reset", "constant + noise must be at most 1: no more rows can be reset than were enriched")
            )
        if data.workers != AUTO and data.ahead != "workers":
            found.append(("data.workers", f"{data.workers} is read with data.ahead=workers only; set that too"))
        if data.ahead == "workers" and data.kind == "corpus":
            found.append(("data.ahead", "workers are for synthetic rows; corpora are only read: give auto or thread"))
        if data.kind == "synthetic":
            found += problems_of_sources(data.sources, model, data.first_target)
        if model and data.first_target > model.context:
            message = f"{data.first_target} leaves no target in a row: at most model.context = {model.context}"
            found.append(("data.first_target", message))
    if model and model.vocabulary < BYTES and evaluation and evaluation.every:
        found.append(
            (
                "model.vocabulary",
                f"{model.vocabulary} is too small for the evaluation, whose texts are bytes: give at least {BYTES}, or "
                "switch it off with evaluation.every=0",
            )
        )
    if run and run.steps and tracking and tracking.profile and tracking.profile.start > run.steps:
        message = f"{tracking.profile.start} is after the last step, run.steps = {run.steps}: nothing would be profiled"
        found.append(("tracking.profile.start", message))
    found += problems_of_fine_tuning(sections) + problems_of_protocols(sections)
    if run and run.dir != AUTO and not run.dir.strip():
        found.append(("run.dir", "is empty; give a folder or auto"))
    return found
