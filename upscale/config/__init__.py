"""The config: its sections and keys (tree.py and what it is made of), and the files it is read from (files.py)."""

from upscale.config.schema import (
    AUTO,
    Config,
    DataConfig,
    EngineConfig,
    ModelConfig,
    MupConfig,
    ProfileConfig,
    ScheduleConfig,
    Section,
    SpikeConfig,
    buffer_rows,
    enriched_rows,
    problems_between_sections,
)

__all__ = [
    "AUTO",
    "Config",
    "DataConfig",
    "EngineConfig",
    "ModelConfig",
    "MupConfig",
    "ProfileConfig",
    "ScheduleConfig",
    "Section",
    "SpikeConfig",
    "buffer_rows",
    "enriched_rows",
    "problems_between_sections",
]
