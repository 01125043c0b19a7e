"""Run the command line with `python -m quantilax.cli`."""

from quantilax.cli import main

main()
