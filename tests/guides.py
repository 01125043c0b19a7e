"""What a reader of a guide types: its files and its commands."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantilax.algorithms import ALGORITHMS
from quantilax.heads import HEADS
from quantilax.runs import extensions

GUIDES = Path(__file__).parents[1] / "docs" / "guides"


def files(guide: str) -> dict[str, str]:
    """The files that a guide asks for, by name."""
    text = (GUIDES / guide).read_text()
    return {m[1]: m[2] for m in re.finditer(r"```\w+ title=\"([\w.]+)\"\n(.*?)```", text, re.DOTALL)}


def commands(guide: str) -> list[list[str]]:
    """Arguments of `quantilax` in a guide, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", (GUIDES / guide).read_text(), re.DOTALL)
    return [line.split()[1:] for block in blocks for line in block.splitlines()]


@contextmanager
def unregistering() -> Iterator[None]:
    """Forget at the end what files of a user registered, and the files."""
    registries: list[dict] = [ALGORITHMS, HEADS, extensions.FILES]
    before = [dict(registry) for registry in registries]
    yield
    for name in set(extensions.FILES) - set(before[2]):
        sys.modules.pop(name, None)
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)
