"""Runs: train from a section of a YAML file, write a directory of results, and load it again."""

from quantilax.devices import use_all_cores
from quantilax.errors import CheckpointError, RunError
from quantilax.host.compilation_cache import enable_compilation_cache
from quantilax.host.interrupts import Interrupted
from quantilax.runs.configs import Section, load_section, parse_overrides
from quantilax.runs.directory import RunDirectory
from quantilax.runs.loading import Evaluated, Loaded, evaluate, load
from quantilax.runs.session import Result, resume, run

__all__ = [
    "CheckpointError",
    "Evaluated",
    "Interrupted",
    "Loaded",
    "Result",
    "RunDirectory",
    "RunError",
    "Section",
    "enable_compilation_cache",
    "evaluate",
    "load",
    "load_section",
    "parse_overrides",
    "resume",
    "run",
    "use_all_cores",
]
