"""How many hostile inputs are tried: few and always the same by default, many and new ones with a profile.

`pytest tests/fuzz --hypothesis-profile=long` tries a hundred times as many; `--hypothesis-seed=N` repeats a run.
"""

from hypothesis import HealthCheck, settings

# Files are made in one folder per test: each example writes all that it reads.
SHARED = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}

settings.register_profile("suite", derandomize=True, max_examples=20, database=None, **SHARED)
settings.register_profile("long", max_examples=3_000, database=None, **SHARED)
settings.load_profile("suite")
