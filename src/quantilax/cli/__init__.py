"""The command line.

This module imports only light modules, so that signals and streams are set up before any slow
import begins.
"""

import sys

from quantilax.cli import start


def main() -> None:
    """Run the command line; a user's mistake gives one line on standard error and exit status 2.

    When the module `__main__` calls this, as `quantilax` and `python -m quantilax` do, it first
    sets up signal handlers and standard streams. When another module calls it, it leaves them
    alone.
    """
    if sys.platform == "win32":
        print("error: quantilax needs Linux or macOS; on Windows use WSL", file=sys.stderr)
        sys.exit(2)
    if sys._getframe(1).f_globals.get("__name__") == "__main__":
        start.prepare()
    from quantilax.cli import app

    app.main()
