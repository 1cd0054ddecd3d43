"""What a config costs on N GPUs, from arithmetic alone: no GPU is needed.

`upscale.model.costs` counts a model's parameters and floating-point operations, `memory` the bytes a rank holds,
`communication` the bytes it sends, and `estimate` puts them together as seconds and as a whole run's operations.
`upscale plan` prints them.
"""

from upscale.machine.gpus import peak_flops
from upscale.model.costs import flops_per_token, parameters
from upscale.planning.estimate import run_flops
from upscale.planning.memory import inference_batch, micro_batch

__all__ = ["flops_per_token", "inference_batch", "micro_batch", "parameters", "peak_flops", "run_flops"]
