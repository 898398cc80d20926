"""The typed run configuration, one section per file.

Every section validates its values when it is built. Loading is strict: the error for an unknown key gives
its dotted path and the nearest valid key.
"""

from gendd.config.checks import check
from gendd.config.data import DataConfig
from gendd.config.evaluation import EvaluationConfig
from gendd.config.method import GenDDConfig, Prediction
from gendd.config.model import ModelConfig
from gendd.config.reading import (
    EXTENDS,
    check_keys,
    dump,
    extended,
    from_dict,
    keys,
    load_config,
    merge,
    one_line,
    parser_of,
    plain_values,
    read_mapping,
    read_yaml,
    section_types,
    to_dict,
    with_settings,
)
from gendd.config.readout import ReadoutChoice, ReadoutConfig, ReadoutName, SamplerName
from gendd.config.run import RunConfig
from gendd.config.training import MonitorName, TrainingConfig

__all__ = [
    "EXTENDS",
    "DataConfig",
    "EvaluationConfig",
    "GenDDConfig",
    "ModelConfig",
    "MonitorName",
    "Prediction",
    "ReadoutChoice",
    "ReadoutConfig",
    "ReadoutName",
    "RunConfig",
    "SamplerName",
    "TrainingConfig",
    "check",
    "check_keys",
    "dump",
    "extended",
    "from_dict",
    "keys",
    "load_config",
    "merge",
    "one_line",
    "parser_of",
    "plain_values",
    "read_mapping",
    "read_yaml",
    "section_types",
    "to_dict",
    "with_settings",
]
