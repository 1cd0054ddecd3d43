"""What a machine does in a second.

`verb` is `upscale bench`; `step` measures training steps of a config, `fitting` finds the rows a pass can hold,
`communication` the time collectives take, `plain` what the engine is compared with, `compare` puts results side by
side, `sources` measures the generators alone.
"""

from upscale.bench.machine import machine, seconds, summary

__all__ = ["machine", "seconds", "summary"]
