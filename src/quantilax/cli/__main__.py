"""`python -m quantilax.cli`."""

from quantilax.cli import main

main()
