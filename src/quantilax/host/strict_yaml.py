"""YAML with one meaning: every version of PyYAML gives the same values, and nothing is guessed.

A plain word is a number, a boolean or null only if YAML 1.1 and 1.2 agree on it; `1_000` is a
number too. Everything else is text: `yes`, `064`, `1:00`, `0b1`, `2024-01-01` and `1e-3`. A field
that needs a number converts text by YAML 1.2's rules and refuses ambiguous text
(`quantilax.pytree`). `yaml.safe_dump` quotes whatever YAML 1.1 would not take for text, so its
output is read back to the same values.

In `<<: [*first, *second]` the first wins, as YAML's merge type requires; the mapping's own keys
win over both.
"""

import re
from typing import Any

import yaml

MAX_VALUES = 100_000
"""Most values in a text; the values behind an alias count at each use."""

_TAG = "tag:yaml.org,2002:"
_DIGITS = "[0-9]+(?:_[0-9]+)*"
_PLAIN = {
    "null": ("~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": ("true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": ("[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        rf"(?:[-+]?{_DIGITS}\.(?:{_DIGITS})?|\.{_DIGITS})(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": ("<<", ["<"]),
}
"""Per kind of plain word, its pattern and the characters it may begin with; the rest is text."""


class _Composer(yaml.SafeLoader):
    """Composes the nodes of a text; `_PLAIN` decides what a plain word is."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


for _name, (_pattern, _first) in _PLAIN.items():
    _Composer.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)


class BrokenError(ValueError):
    """The text is not YAML or has no single meaning; `line` counts from 1, None if unknown."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        """Say what is wrong and in which line."""
        super().__init__(problem)
        self.line = line


def parse(text: str) -> Any:
    """Return the value of a text: mappings (string keys), lists, strings, numbers, booleans, None.

    Raises:
        BrokenError: the text cannot be read.
    """
    try:
        loader = _Composer(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
        return None if root is None else _Values().of(root)
    except yaml.MarkedYAMLError as error:
        problem = error.problem or "not YAML"
        if problem == "but found another document":
            problem = "a second document begins here; keep only one"
        raise BrokenError(problem, error.problem_mark.line + 1 if error.problem_mark else None) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise BrokenError(f"the character {chr(error.character)!r} is not allowed in YAML", line) from None
    except RecursionError:
        raise BrokenError("nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError) as error:  # raised by PyYAML
        raise BrokenError(str(error).partition("\n")[0] or "not YAML") from None


class _Values:
    """Converts the nodes of one text to values."""

    def __init__(self) -> None:
        self.count = 0
        self.open: set[int] = set()
        """Identities of the nodes being converted, to find an alias to an enclosing value."""

    def of(self, node: yaml.Node) -> Any:
        """Return a node's value."""
        self.count += 1
        if self.count > MAX_VALUES:
            raise _broken(f"more than {MAX_VALUES:,} values, with aliases counted wherever they are used", node)
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        if id(node) in self.open:
            raise _broken("an alias refers to a value that contains it", node)
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
                return self._mapping(node)
            if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
                return [self.of(item) for item in node.value]
            raise _broken(f"the tag {node.tag.replace(_TAG, '!!')} is not supported; leave it out", node)
        finally:
            self.open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] | None = None
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                if merged is not None:
                    raise _broken("'<<' occurs twice; write '<<: [*first, *second]', where the first wins", key_node)
                merged = self._merged(value_node)
                continue
            key = self.of(key_node)
            if not isinstance(key, str):
                raise _broken(f"expected a name, got {key!r:.60}; put it in quotes", key_node)
            if key in own:
                raise _broken(f"'{key}' occurs twice", key_node)
            own[key] = self.of(value_node)
        return {**(merged or {}), **own}

    def _merged(self, node: yaml.Node) -> dict[str, Any]:
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for part in reversed(parts):
            found = self.of(part)
            if not isinstance(found, dict):
                raise _broken("expected fields after '<<', such as '*base' or '[*first, *second]'", part)
            merged |= found
        return merged


def _scalar(node: yaml.ScalarNode) -> Any:
    kind, text = node.tag.removeprefix(_TAG), node.value
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise _broken("half of a surrogate pair is not a character", node)
    if kind in ("str", "merge"):
        return text
    if kind not in _PLAIN:
        raise _broken(f"the tag {node.tag.replace(_TAG, '!!')} is not supported; leave it out", node)
    if not re.fullmatch(_PLAIN[kind][0], text):  # possible with an explicit tag
        raise _broken(f"'{text:.60}' is not a valid !!{kind}; leave the tag out", node)
    if kind == "int":
        try:
            return int(text, 0)
        except ValueError:
            raise _broken("a number with thousands of digits", node) from None
    if kind == "float":
        return float(text.replace(".", "", 1) if text[-1] in "fFnN" else text)
    return text in ("true", "True", "TRUE") if kind == "bool" else None


def _broken(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
