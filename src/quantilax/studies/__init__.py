"""Studies: run variants of a config with several seeds each, and compare their records."""

from quantilax.studies.definition import Study
from quantilax.studies.start import run
from quantilax.studies.store import Store

__all__ = ["Store", "Study", "run"]
