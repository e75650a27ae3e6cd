"""Configuration: the schema, where it is read from, and errors that name file, line and key.

Knows files and the schema. Must not know what the daemon does with a setting.

Invariants: a `Config` is complete and consistent; a setting whose feature does not exist yet is
refused, never accepted and ignored; every mistake in a file is reported at once.
"""

from openclawd.config.errors import ConfigError, Finding
from openclawd.config.loading import config_from_models, load_config
from openclawd.config.model_files import (
    backend_of,
    find_model_by_name,
    find_model_file,
    is_model_file,
    missing_files,
    model_files_by_stem,
)
from openclawd.config.schema import (
    BackendOptions,
    Config,
    InferenceSettings,
    LoggingConfig,
    ModelConfig,
    ResourceLimits,
)

__all__ = [
    "BackendOptions",
    "Config",
    "ConfigError",
    "Finding",
    "InferenceSettings",
    "LoggingConfig",
    "ModelConfig",
    "ResourceLimits",
    "backend_of",
    "config_from_models",
    "find_model_by_name",
    "find_model_file",
    "is_model_file",
    "load_config",
    "missing_files",
    "model_files_by_stem",
]
