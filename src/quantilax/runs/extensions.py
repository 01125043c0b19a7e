"""Users' Python files, which register algorithms and environments before a command uses them."""

import importlib
import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from quantilax.errors import ConfigError, reason


class File(NamedTuple):
    """A file as it was read: all that another process, also on another machine, needs to run it."""

    told: str
    """The path as the user gave it, for messages."""
    path: str
    """The absolute path: the module's `__file__`."""
    content: bytes

    @property
    def name(self) -> str:
        """The module's name."""
        return Path(self.path).stem


FILES: dict[str, File] = {}
"""The files that run here as modules, by module name."""


def load(*files: Path) -> None:
    """Run Python files as modules named after them; they may import one another.

    Raises:
        ConfigError: a file does not exist, its name is taken, or it fails (names the line).
    """
    run([_read(file) for file in files])


def run(files: Iterable[File]) -> None:
    """Run files that were read here or elsewhere; raises `ConfigError` like `load`."""
    new = []
    try:
        for file in files:
            if FILES.get(file.name) != file:  # the same file may be given twice
                _check_name(file)
                FILES[file.name] = file
                new.append(file)
        for file in new:
            _import(file)
    finally:
        for file in new:
            if file.name not in sys.modules:  # it failed
                del FILES[file.name]


def _import(file: File) -> None:
    try:
        importlib.import_module(file.name)
    except ConfigError as error:
        raise ConfigError(f"{file.told}: {error}") from None
    except (Exception, SystemExit) as error:  # a user's file may raise anything
        raise ConfigError(
            f"{file.told}: {_line(error, file)}{type(error).__name__}: {reason(error)}; fix the file"
        ) from None


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.ExecutionLoader):
    """Finds modules in `FILES` and runs them from their content; the files need not exist here."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = FILES.get(fullname)
        return file and importlib.util.spec_from_file_location(fullname, file.path, loader=self)

    def get_filename(self, fullname: str) -> str:
        return FILES[fullname].path

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(FILES[fullname].content)

    def is_package(self, fullname: str) -> bool:
        return False


sys.meta_path.insert(0, _Finder())


def _read(file: Path) -> File:
    if not os.path.exists(file):
        raise ConfigError(f"--import: {file}: no such file")
    if file.suffix != ".py" or "." in file.stem or not os.path.isfile(file):
        raise ConfigError(f"--import: {file} is not a Python file; its name must end with .py and have no other dot")
    try:
        return File(str(file), os.path.abspath(file), file.read_bytes())
    except OSError as error:
        raise ConfigError(f"--import: {file} cannot be read: {error.strerror}") from None


def _check_name(file: File) -> None:
    """Raise `ConfigError` if another module has the file's name."""
    if file.name in sys.modules:
        other = getattr(sys.modules[file.name], "__file__", None)
    elif spec := importlib.util.find_spec(file.name):
        other = spec.origin
    else:
        return
    if other is None or not _is_same(other, file.path):
        raise ConfigError(f"--import: {file.told} has the same name as the module {file.name}; rename the file")


def _is_same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _line(error: BaseException, file: File) -> str:
    """Return which line of the file an error came from, for a message."""
    if isinstance(error, SyntaxError) and error.filename == file.path:
        return f"line {error.lineno}: " if error.lineno else ""
    lines, trace = [], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file.path:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f"line {lines[-1]}: " if lines else ""
