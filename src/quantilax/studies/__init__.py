"""Studies: which configuration works, over cells and seeds, and why a run is unstable."""
