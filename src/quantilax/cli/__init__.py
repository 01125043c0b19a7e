"""The command line. What is imported here is light: signals and streams are taken in hand before anything heavy is."""

import sys

from quantilax.cli import start


def main() -> None:
    """Run the command line; what a user got wrong is one line on standard error and exit status 2.

    Where a program calls this for itself, as `quantilax` and `python -m quantilax` do, its signals and its standard streams
    are prepared first. A function that calls it keeps its own.
    """
    if sys.platform == "win32":
        print("error: quantilax needs Linux or macOS; on Windows use WSL", file=sys.stderr)
        sys.exit(2)
    if sys._getframe(1).f_globals.get("__name__") == "__main__":
        start.prepare()
    from quantilax.cli import app

    app.main()
