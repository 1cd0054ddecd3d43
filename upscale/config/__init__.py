"""The config: its sections and keys (schema.py, finetuning.py), and the files it is read from (files.py)."""

from upscale.config.schema import (
    AUTO,
    Config,
    DataConfig,
    EngineConfig,
    InitConfig,
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
    "InitConfig",
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
