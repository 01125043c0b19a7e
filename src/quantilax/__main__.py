"""`python -m quantilax`."""

from quantilax.cli import main

main()
