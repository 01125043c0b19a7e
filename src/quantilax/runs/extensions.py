"""Python files of a user, which register algorithms and environments before a command looks them up."""

import importlib.util
import os
import sys
from pathlib import Path

from quantilax.pytree import ConfigError
from quantilax.runs.errors import reason


def load(file: Path) -> None:
    """Run a Python file as a module of its own name.

    Raises:
        ConfigError: there is no such file, its name is taken, or it fails; the line of the file that failed is named.
    """
    if file.suffix != ".py" or "." in file.stem or not os.path.isfile(file):
        raise ConfigError(f"--import: {file} is no Python file; name one that ends with .py and has no other dot")
    name = file.stem
    spec = importlib.util.spec_from_file_location(name, file)
    other = None if name in sys.modules else importlib.util.find_spec(name)
    is_other = other is not None and Path(other.origin or "").resolve() != file.resolve()
    if name in sys.modules or is_other or spec is None or spec.loader is None:
        raise ConfigError(f"--import: {file} has the name of another module, {name}; rename the file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # classes look up their annotations there
    try:
        spec.loader.exec_module(module)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    except (Exception, SystemExit) as error:  # whatever a user's file may raise
        raise ConfigError(
            f"{file}: {_line(error, file)}{type(error).__name__}: {reason(error)}; mend the file"
        ) from None


def _line(error: BaseException, file: Path) -> str:
    """Say where in the file an error came from."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: "
    lines, trace = [], error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).resolve() == file.resolve():
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f"line {lines[-1]}: " if lines else ""
