"""What a machine does in a second.

`step` measures training steps of a config, `fitting` finds the largest microbatch that fits, `communication` the time
that collectives take, `plain` what the engine is compared with, `compare` puts results side by side, `sources` measures
the generators alone.
"""

from upscale.bench.machine import machine, seconds, summary

__all__ = ["machine", "seconds", "summary"]
