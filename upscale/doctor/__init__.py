"""What a machine has and how fast it is, compared over all ranks before a long run. A kind of check is one file here.

Every rank measures, rank 0 compares: `examination.py` runs the checks in the order of `CHECKS`.
"""

from upscale.doctor.base import OK, PROBLEM, Check, Record, Session
from upscale.doctor.clocks import Clocks
from upscale.doctor.devices import Devices
from upscale.doctor.generator import Generator
from upscale.doctor.limits import Limits
from upscale.doctor.links import Links
from upscale.doctor.memory import Memory
from upscale.doctor.ports import Ports
from upscale.doctor.storage import Storage
from upscale.doctor.versions import Versions

CHECKS: tuple[Check, ...] = (
    Versions(),
    Limits(),
    Clocks(),
    Ports(),
    Storage(),
    Memory(),
    Devices(),
    Links(),
    Generator(),
)
"""All checks, in the order in which every rank runs them. The first says whether ranks may go on together."""

__all__ = ["CHECKS", "OK", "PROBLEM", "Check", "Record", "Session"]
