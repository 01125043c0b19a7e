"""Put a section into a YAML file of configs.

The rest of the file, comments included, stays the same byte for byte.
"""

import itertools
import os
import stat
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from quantilax.errors import ConfigError
from quantilax.host.files import write_whole
from quantilax.runs import configs
from quantilax.studies.definition import plain

MARK = "#: Recommended by quantilax"
"""Beginning of a comment that `put` wrote; the next comment replaces it."""

WIDTH = 100


class Edited(NamedTuple):
    """The text of a file after a section was put into it."""

    text: str
    changed: list[str]
    """Fields of an existing section whose values changed."""
    commented: list[str]
    """Changed fields with a comment after the value, which describes the old value."""


def read(file: Path, option: str = "--write") -> str:
    """Read a file's text with its line ends unchanged; empty if the file does not exist yet.

    Args:
        file: the file.
        option: the command line's option that named it, for messages.

    Raises:
        ConfigError: the file cannot be read, or its directory does not exist.
    """
    try:
        return file.read_bytes().decode("utf-8")
    except FileNotFoundError:
        if not file.parent.is_dir():
            raise ConfigError(
                f"{file}: the directory {file.parent} does not exist; create it, or choose another {option}"
            ) from None
        return ""
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: is not a text file in UTF-8; choose another {option}") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}; choose another {option}") from None


def write(file: Path, text: str, option: str = "--write") -> None:
    """Replace a file's text; a symbolic link stays a link, and permissions are kept.

    Args:
        file, option: as for `read`.
        text: the whole text of the file.

    Raises:
        ConfigError: the file cannot be written, and is unchanged.
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

    In an existing section, only the values that differ are replaced; a field that it leaves to a
    default with another value is added at its end. A new section is written at the end of the file,
    with every field.

    Args:
        text: the file's text.
        file: the file, for messages.
        name: name of the section.
        fields: `algorithm`, `env` and every hyperparameter.
        comment: lines of a comment above the section.

    Raises:
        ConfigError: the file is broken, or the section is written in a way that cannot be edited.
    """
    before = configs.parse_yaml(text, file)
    if before is not None and not isinstance(before, dict):
        raise ConfigError(f"{file}: contains no section; expected lines such as 'iqn:' and '  env: CartPole-v1'")
    newline = "\r\n" if "\r\n" in text else "\n"
    told = newline.join(_comment(comment))
    if before is None or name not in before:
        block = yaml.safe_dump({name: dict(fields)}, sort_keys=False, default_flow_style=None, width=WIDTH)
        gap = "" if not text else newline if text.endswith("\n") else 2 * newline
        edited = Edited(text + gap + told + newline + block.replace("\n", newline), [], [])
    else:
        edited = _replace(text, file, name, fields, told, newline, configs.select(before, file, name))
    _check(edited.text, file, name, fields, before or {})
    return edited


def _replace(
    text: str, file: Path, name: str, fields: Mapping[str, Any], told: str, newline: str, there: configs.Section
) -> Edited:
    has = plain(there)
    if has["algorithm"] != fields["algorithm"]:
        raise ConfigError(
            f"{file}: section '{name}' is for {has['algorithm']}, but this one is for {fields['algorithm']};"
            " choose another --section"
        )
    found = _find(text, name)
    if found is None:  # it comes from a merge key `<<`
        raise _not_editable(file, name)
    key, section = found
    if not isinstance(section, yaml.MappingNode) or section.flow_style:
        raise _not_editable(file, name)
    nodes = {k.value: v for k, v in section.value}
    changed = [field for field, value in fields.items() if has.get(field) != value]
    pieces: list[tuple[int, int, str]] = []
    for field in changed:
        if field in nodes:
            if "\n" in text[nodes[field].start_mark.index : nodes[field].end_mark.index]:  # which may hold comments
                raise _not_editable(file, name)
            pieces.append((nodes[field].start_mark.index, nodes[field].end_mark.index, written(fields[field])))
    commented = [f for f in changed if f in nodes and "#" in _rest_of_line(text, nodes[f].end_mark.index)]
    indent = " " * section.value[0][0].start_mark.column
    added = [f"{indent}{field}: {written(fields[field])}{newline}" for field in changed if field not in nodes]
    at = max(v.end_mark.index for v in nodes.values())
    at += len(_rest_of_line(text, at))
    if added:
        pieces.append((at, at, "".join(added) if text[:at].endswith("\n") else newline + "".join(added)))
    pieces.append((*_place_of_comment(text, key.start_mark.index), told + newline))
    for start, end, new in sorted(pieces, reverse=True):
        text = text[:start] + new + text[end:]
    return Edited(text, changed, commented)


def written(value: Any) -> str:
    """Write a value as YAML, in the form in which it follows a field's name."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).strip().removesuffix("...").strip()


def _find(text: str, name: str) -> tuple[yaml.Node, yaml.Node] | None:
    """Return the YAML nodes of a section's name and content; None if the text has no such section.

    The nodes know their positions in the text.
    """
    root = yaml.compose(text, yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    return next(((key, value) for key, value in root.value if key.value == name), None)


def _rest_of_line(text: str, at: int) -> str:
    """Return the text from a position to the end of its line, line end included."""
    end = text.find("\n", at)
    return text[at:] if end < 0 else text[at : end + 1]


def _place_of_comment(text: str, key: int) -> tuple[int, int]:
    """Return the range of text that the comment above a section replaces.

    It is that of an earlier comment of ours, else the empty range right above the section's name.
    """
    start = text.rfind("\n", 0, key) + 1
    above: list[tuple[int, int]] = []
    at = start
    while at > 0:
        before = text.rfind("\n", 0, at - 1) + 1
        if not text[before:at].startswith("#"):
            break
        above.insert(0, (before, at))
        at = before
    for i, (begin, end) in enumerate(above):
        if text.startswith(MARK, begin):
            more = itertools.takewhile(lambda line: text.startswith("#: ", line[0]), above[i + 1 :])
            return begin, max([end, *(after for _, after in more)])
    return start, start


def _comment(lines: Sequence[str]) -> list[str]:
    """Wrap lines as a comment that begins with `MARK`."""
    found = []
    for i, line in enumerate(lines):
        words = f"{'#:' if i else MARK + ':'} {' '.join(line.split())}"
        found += textwrap.wrap(words, WIDTH, subsequent_indent="#: ", break_long_words=False, break_on_hyphens=False)
    return found


def _check(text: str, file: Path, name: str, fields: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Refuse an edit that changed another section, or whose section does not hold `fields`."""
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
        f"{file}: section '{name}' cannot be inserted without changing the rest of the file;"
        " choose another --section or --write"
    )
