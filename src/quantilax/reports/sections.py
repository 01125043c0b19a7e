"""Putting a section into a YAML file of configs: whatever else stands there stays as it is, byte for byte, comments too."""

import io
import os
import re
import stat
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ruamel.yaml
import yaml

from quantilax.errors import ConfigError
from quantilax.host.files import write_whole
from quantilax.runs import configs
from quantilax.studies.definition import plain

MARK = "#: Recommended by quantilax"
"""How a comment begins that `put` wrote; the next one takes its place."""

WIDTH = 120

YAML = ruamel.yaml.YAML()
"""Reads and writes with comments and quotes."""
YAML.preserve_quotes = True
YAML.width = 10_000


class Edited(NamedTuple):
    """A file's text with the section in it."""

    text: str
    changed: list[str]
    """Fields of a section that was there whose values are others now."""
    commented: list[str]
    """Of these those with a comment behind the value, which was written for the one before."""


def read(file: Path, option: str = "--write") -> str:
    """Read a file's text as it is, its line ends too; empty where there is no file yet.

    Args:
        file: the file.
        option: the one that named it, for messages.

    Raises:
        ConfigError: it cannot be read, or its directory is not there.
    """
    try:
        return file.read_bytes().decode("utf-8")
    except FileNotFoundError:
        if not file.parent.is_dir():
            raise ConfigError(
                f"{file}: there is no directory {file.parent}; make it, or choose another {option}"
            ) from None
        return ""
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: is no text file in UTF-8; choose another {option}") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}; choose another {option}") from None


def write(file: Path, text: str, option: str = "--write") -> None:
    """Write a file whole; a link stays a link, and rights stay as they are.

    Args:
        file, option: as for `read`.
        text: all of the file.

    Raises:
        ConfigError: it cannot be written; the file is as it was.
    """
    try:
        target = file.resolve()
        rights = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
        write_whole(target, text)
        if rights is not None:
            os.chmod(target, rights)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}; choose another {option}") from None


def put(text: str, file: Path, name: str, fields: Mapping[str, Any], comment: Sequence[str]) -> Edited:
    """Put a section into a file's text.

    Where the section is there already, only the values that differ are replaced, and fields that it left to defaults which
    differ are added at its end. A new section comes at the end of the file, every field with its value.

    Args:
        text: of the file.
        file: for messages.
        name: the section.
        fields: `algorithm`, `env` and every hyperparameter.
        comment: lines to stand above the section.

    Raises:
        ConfigError: the file is broken, or the section is written in a way that cannot be edited.
    """
    before = configs.parse_yaml(text, file)
    if before is not None and not isinstance(before, dict):
        raise ConfigError(f"{file}: holds no section; expected lines such as 'iqn:' and '  env: CartPole-v1'")
    newline = "\r\n" if "\r\n" in text else "\n"
    told = newline.join([*_comment(comment), ""])
    if before is None or name not in before:
        block = yaml.safe_dump({name: dict(fields)}, sort_keys=False, default_flow_style=None, width=WIDTH)
        gap = "" if not text else newline if text.endswith("\n") else 2 * newline
        edited = Edited(text + gap + told + block.replace("\n", newline), [], [])
    else:
        has = plain(configs.select(before, file, name))
        if has["algorithm"] != fields["algorithm"]:
            raise ConfigError(
                f"{file}: section '{name}' is of {has['algorithm']} and this is of {fields['algorithm']};"
                " choose another --section"
            )
        try:
            edited = _edit(text, name, {k: v for k, v in fields.items() if has.get(k) != v}, told, newline)
        except (ruamel.yaml.YAMLError, LookupError, ValueError, TypeError, AttributeError):  # it cannot read odd text
            raise _not_editable(file, name) from None
    _check(edited.text, file, name, fields, before or {})
    return edited


def _edit(text: str, name: str, changes: Mapping[str, Any], told: str, newline: str) -> Edited:
    """Change fields of a section; lines of other fields stay as they are, even where ruamel.yaml would write them otherwise.

    Raises:
        ValueError: it would change more lines than those, or take one away.
    """
    place = re.search(
        rf"^{re.escape(name)}:[^\r\n]*(?:\r?\n(?:(?:[ \t#][^\r\n]*)?\r?\n)*[ \t]+[^\s#][^\r\n]*)*", text, re.MULTILINE
    )  # up to its last field: comments and empty lines below are not its own
    if place is None:
        raise ValueError("it stands nowhere by its name")
    lines = re.split("\r?\n", place[0])
    document = YAML.load("\n".join(lines))
    section, commented = document[name], []
    if section.fa.flow_style():
        raise ValueError("it has no lines of its own")
    YAML.indent(mapping=section.lc.col)
    before, new = _dumped(document), changes.keys() - section.keys()
    for field, value in changes.items():
        comment = section.ca.items.get(field, [None] * 3)[2]
        if comment is not None and comment.value.startswith("#"):
            commented.append(field)
            end = len(lines[section.lc.key(field)[0]][: comment.start_mark.column].rstrip())
            comment.start_mark.column += section.lc.col + len(f"{field}: {written(value)}") - end  # keeps its distance
        section[field] = YAML.load(written(value))
    after = _dumped(document)
    if not len(lines) == len(before) == len(after) - len(new):
        raise ValueError("a value stands in several lines")
    kept = [line if x == y else y for line, x, y in zip(lines, before, after, strict=False)]
    above = text[: place.start()]
    former = re.search(rf"^{re.escape(MARK)}.*\n(?:#: .*\n)*(?=(?:#.*\n)*\Z)", above, re.MULTILINE)
    above = above + told if former is None else above[: former.start()] + told + above[former.end() :]
    edited = newline.join([*kept, *after[len(before) :]])
    return Edited(above + edited + text[place.end() :], list(changes), commented)


def _dumped(document: Any) -> list[str]:
    stream = io.StringIO()
    YAML.dump(document, stream)
    return stream.getvalue().removesuffix("\n").split("\n")


def written(value: Any) -> str:
    """Write a value as it stands behind a field."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).strip().removesuffix("...").strip()


def _comment(lines: Sequence[str]) -> list[str]:
    """Wrap lines as a comment that begins with `MARK`."""
    found = []
    for i, line in enumerate(lines):
        words = f"{'#:' if i else MARK + ':'} {' '.join(line.split())}"
        found += textwrap.wrap(words, WIDTH, subsequent_indent="#: ", break_long_words=False, break_on_hyphens=False)
    return found


def _check(text: str, file: Path, name: str, fields: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Refuse an edit that changed anything else, or did not make the section what it is to be."""
    try:
        after = configs.parse_yaml(text, file)
        is_well = plain(configs.select(after, file, name)) == dict(fields)
    except ConfigError:
        raise _not_editable(file, name) from None
    others = {key: value for key, value in after.items() if key != name}
    if not is_well or repr(others) != repr({key: value for key, value in before.items() if key != name}):
        raise _not_editable(file, name)


def _not_editable(file: Path, name: str) -> ConfigError:
    return ConfigError(
        f"{file}: section '{name}' cannot be put in without changing the rest of the file; choose another --section or --write"
    )
