"""Studies: configurations times seeds, run and kept so that they can be compared."""

from quantilax.studies.definition import Study
from quantilax.studies.start import run
from quantilax.studies.store import Store

__all__ = ["Store", "Study", "run"]
