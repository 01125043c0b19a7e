"""Runs: from a YAML section to a directory of results, and back from it."""

from quantilax.runs.conditions import check_memory, enable_compilation_cache, use_all_cores
from quantilax.runs.configs import Section, load_section, parse_overrides
from quantilax.runs.directory import RunDirectory
from quantilax.runs.errors import CheckpointError, RunError
from quantilax.runs.loading import Evaluated, Loaded, evaluate, load
from quantilax.runs.signals import Interrupted
from quantilax.runs.training import Result, resume, run

__all__ = [
    "CheckpointError",
    "Evaluated",
    "Interrupted",
    "Loaded",
    "Result",
    "RunDirectory",
    "RunError",
    "Section",
    "check_memory",
    "enable_compilation_cache",
    "evaluate",
    "load",
    "load_section",
    "parse_overrides",
    "resume",
    "run",
    "use_all_cores",
]
