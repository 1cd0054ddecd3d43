"""The evaluation room: the paper's tasks and texts, bits per character, and the baselines beside it."""

from upscale.evaluation.dataset import Dataset, EvaluationError
from upscale.evaluation.suite import NAMES, check_names, datasets, evaluate
from upscale.evaluation.table import table

__all__ = ["NAMES", "Dataset", "EvaluationError", "check_names", "datasets", "evaluate", "table"]
