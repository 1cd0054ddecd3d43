"""The keys of a study file, as typed sections; loading.py reads one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from upscale.config.finetuning import Part, RowsConfig
from upscale.config.problems import counted
from upscale.errors import UserError
from upscale.machine.gpus import DEVICES
from upscale.settings import AUTO, Count, CountOrZero, Positive, Section

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_]*$", description="letters, digits and '_'")]
Key = Annotated[
    str,
    Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$", description="section.key, such as model.width, or a section"),
]


def dotted(settings: Any) -> Any:
    """`section: {key: value}` as `section.key: value`, so that a section's other keys stay."""
    if not isinstance(settings, dict):
        return settings
    found = {}
    for name, value in settings.items():
        whole = isinstance(value, dict) and "." not in str(name)
        found.update({f"{name}.{key}": each for key, each in value.items()} if whole else {name: value})
    return found


if TYPE_CHECKING:
    DeviceName = str
else:
    DeviceName = Literal[tuple(DEVICES)]

Settings = Annotated[dict[Key, Any], BeforeValidator(dotted)]
"""`section.key: value`, as on the command line of `upscale train`, or sections as in a config."""


StepSettings = Annotated[dict[Key, bool | int | float | Name], BeforeValidator(dotted)]
"""The same of one arm; the values are part of a folder's name."""


class Stage(Section):
    config: str
    """Config file that `upscale train --config` takes; paths are relative to the current folder, as everywhere."""
    set: Settings = {}
    """What replaces the config's values, and the study's own `set`."""
    reinitialize: list[Part] = []
    """Parts that begin with random weights where this stage continues another one."""
    rows: RowsConfig = RowsConfig()
    """How the rows of tokens and positions begin where this stage continues another one and their part is not among
    `reinitialize`: `init.rows` of a config."""
    like: Name | None = None
    """The stage whose random numbers this one has; null: it has its own."""
    slurm: list[str] = []
    """Options of `sbatch` for this stage's jobs, after the study's."""


class Step(Section):
    """One stage of an arm; a plain name stands for one without settings of its own."""

    stage: Name
    """Which of the stages."""
    reinitialize: list[Part] | None = None
    """Parts that begin with random weights in this arm; null: the stage's."""
    rows: RowsConfig | None = None
    """How rows of tokens and positions begin in this arm; null: as the stage says."""
    control: Literal["none", "shuffled", "gaussian"] = "none"
    """What this arm takes of the weights before: `init.control` of a config."""
    mix: dict[Part, Name] = {}
    """Parts that this arm takes from a training of another stage, from random weights: part -> stage."""
    set: StepSettings = {}
    """What this arm sets otherwise than the stage, such as its best learning rate: numbers, true, false and names, of
    which its run directory has its name. Keys of `evaluation` and model.context are the same for all arms."""

    @model_validator(mode="before")
    @classmethod
    def from_name(cls, value: Any) -> Any:
        return {"stage": value} if isinstance(value, str) else value


class Metric(Section):
    stage: Name
    """The stage whose evaluations are compared."""
    task: str
    """The text or task that decides, one of the stage's evaluation.tasks."""
    split: Literal["validation", "excerpt", "generated", "data_dir"] = "validation"
    """Where it comes from, as evaluations.jsonl names it; validation: the held-out split of a prepared corpus."""


class Substitute(Section):
    """Smaller budgets of a stage, each a training of its own that ends its schedule there."""

    stage: Name
    """The stage, the last one of every arm that has it."""
    instances: Annotated[list[Count], Field(min_length=1)]
    """schedule.instances of the smaller budgets."""
    arms: Annotated[list[Name], Field(min_length=1)] | None = None
    """Which arms; null: all that have the stage."""


class Slurm(Section):
    script: str = "slurm/pretrain_w1024.sh"
    """The job script; it must hand its arguments to `upscale train`."""
    options: list[str] = []
    """Options of `sbatch` for every training, such as --nodes=1 and --time=04:00:00."""


class AnyStudy(Section):
    """What studies of both forms have."""

    name: Name
    """Name of the study, of its results' files and of its folder of runs."""
    runs: str = AUTO
    """Folder of the run directories, one a member; auto: runs/NAME."""
    to: str = AUTO
    """Folder for NAME.md, NAME.json and the pictures; auto: the folder of the runs."""
    seeds: Annotated[list[CountOrZero], Field(min_length=1)] = [0]
    """The whole study runs once for each. Arms are compared seed by seed; in a grid a seed gives the same rows at every
    width whose lanes and batches are equal."""
    set: Settings = {}
    """What replaces the values of every training's config."""
    slurm: Slurm = Slurm()

    def folders(self, runs: Path | None, to: Path | None) -> tuple[Path, Path]:
        """Where the run directories and the results are; a folder that is given goes before that of the file."""
        runs = runs or Path(self.runs if self.runs != AUTO else f"runs/{self.name}")
        return runs, to or (Path(self.to) if self.to != AUTO else runs)


class Study(AnyStudy):
    stages: Annotated[dict[Name, Stage], Field(min_length=1)]
    """Trainings, by name."""
    arms: Annotated[dict[Name, Annotated[list[Step], Field(min_length=1)]], Field(min_length=2)]
    """Chains of stages, by name: each begins with the weights the one before it ended with."""
    baseline: Name
    """The arm that the others are compared with."""
    compare: Annotated[list[Metric], Field(min_length=1)]
    """What is compared; the first is what the study is about."""
    budget: Literal["equal", "any"] = "equal"
    """equal: what arms train on before a compared stage, beside stages that all of them have, is nothing or equally
    many tokens, to within 1 %; any: unchecked."""
    substitute: Substitute | None = None
    """How much less of a stage does an arm need? Arms with this stage are trained at smaller budgets of it too."""


class Point(Section):
    """One place on an axis of a grid."""

    config: str | None = None
    """Config file of the trainings at this point; null: the grid's."""
    set: Settings = {}
    """What replaces the config's values and the grid's own `set`; later axes win over earlier ones."""
    script: str | None = None
    """The job script of the trainings at this point; null: the grid's."""
    slurm: list[str] = []
    """Options of `sbatch` for the trainings at this point, after the grid's."""


class Before(Section):
    """A training that those of a grid continue, as the pre-training before a switch to text.

    Of the grid and its points it has the keys of `model`, `mup` and `engine`; so each architecture has one, and what
    differs in anything else begins with the same weights.
    """

    config: str
    """Its config file."""
    set: Settings = {}
    """What replaces the config's values."""
    reinitialize: list[Part] = []
    """Parts that begin with random weights in the trainings after it."""


class Hardware(Section):
    """What the next width would be trained on, as `upscale plan` takes it."""

    device: DeviceName = "h200"
    nodes: Count = 1
    gpus_per_node: Count = 8
    network_gigabits: Positive = 400.0
    """Per GPU, one way, to other nodes."""
    utilization: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Of the sheet peak while computing: an assumption, until it is measured."""


class Next(Section):
    """A training that is not run: what the laws say of it, and what it would cost."""

    config: str | None = None
    """Its config file; null: the grid's."""
    set: Settings = {}
    """What replaces the config's values and the grid's own `set`."""
    hardware: Hardware | None = None
    """Where it would run; null: at the speed of the largest width, on what that ran on."""


class Finetuning(Section):
    """What every training of a grid is fine-tuned on, beside the same from random weights."""

    config: str
    """Config file of the fine-tuning; model (but for dropout), mup and engine are those of the training before it."""
    set: Settings = {}
    """What replaces all of these values; the grid's own `set` does not, nor `schedule.` on the command line."""
    task: str
    """The text that is compared, one of its evaluation.tasks."""
    split: Literal["validation", "excerpt", "generated", "data_dir"] = "validation"
    """Where it comes from, as evaluations.jsonl names it; validation: the held-out split of a prepared corpus."""
    slurm: list[str] = []
    """Options of `sbatch` for its jobs, after those of the training before it."""


class Grid(AnyStudy):
    """A study of trainings at every combination of its axes' points."""

    report: Literal["scaling", "transfer", "stability", "minutes"]
    """scaling: how bits fall with the width, by laws; transfer: where the best learning rate is at each width;
    stability: up to which rate training is stable at each width; minutes: bits after equally many minutes."""
    axes: Annotated[dict[Name, Annotated[dict[Name, Point], Field(min_length=1)]], Field(min_length=1)]
    """Points by name, by axis. One is `width`, and in a transfer or stability study another is `rate`; a minutes study
    has an axis `recipe`. What other axes vary, such as the source, has results of its own."""
    config: str | None = None
    """Config file of the trainings whose points name none."""
    before: Before | None = None
    """What the trainings begin with; null: random weights."""
    flops: Positive | None = None
    """Equal operations: each training gets the rows that take so many in all, instead of schedule.instances; null:
    equal instances."""
    next: Next | None = None
    """scaling only: the width to foretell."""
    finetune: dict[Name, Finetuning] = {}
    """scaling only: texts, by name, on which every training goes on, so that fine-tuned bits by width are known too."""


UNEQUAL = 0.01
"""By which share budgets may differ that count as equal."""
AXES = {"scaling": ("width",), "transfer": ("width", "rate"), "stability": ("width", "rate"), "minutes": ("recipe",)}
"""The axes that a report needs."""


def failure(path: Path, problems: list[str]) -> UserError:
    return UserError(counted(problems, f"the study {path}"))
