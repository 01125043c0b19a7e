"""Runs: from a YAML section to a directory of results."""

from quantilax.runs.configs import Section, load_section, parse_overrides
from quantilax.runs.directory import RunDirectory
from quantilax.runs.training import RunError, check_memory, enable_compilation_cache, run

__all__ = [
    "RunDirectory",
    "RunError",
    "Section",
    "check_memory",
    "enable_compilation_cache",
    "load_section",
    "parse_overrides",
    "run",
]
