"""Writes the tables of hyperparameters into docs/algorithms/*.md from the configs: `make tables`.

python tools/tables.py           writes
python tools/tables.py --check   exit status 1 where a page is not what this would write
"""

import argparse
import dataclasses
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

from quantilax import ALGORITHMS, hyperparameters, pytree

PAGES = Path(__file__).resolve().parents[1] / "docs" / "algorithms"
BEGIN, END = "<!-- tables: written by `make tables` -->\n", "<!-- end of tables -->\n"

GROUPS: dict[type, str] = {
    hyperparameters.Loop: "The loop",
    hyperparameters.Replay: "Replay",
    hyperparameters.Optimiser: "Optimisation",
    hyperparameters.Target: "Target network",
    hyperparameters.Munchausen: "Soft targets",
    hyperparameters.Exploration: "Exploration",
    hyperparameters.Task: "The task",
    hyperparameters.Network: "The network",
}
MOVED: dict[str, type] = {
    "adam_eps": hyperparameters.Optimiser,
    "exploration_repeats": hyperparameters.Exploration,
    "dueling": hyperparameters.Network,
    "noisy": hyperparameters.Network,
    "num_steps": hyperparameters.Loop,
    "num_minibatches": hyperparameters.Loop,
}
"""Groups in whose table a field stands that a config has of its own; the others have one by themselves."""
OWN = "The distribution"

LINKS = {
    "metrics": ("metrics", "algorithms/iqn.md#metrics"),
    "signals": ("signals", "diagnosis.md#signals"),
    "n_step": ("several steps", "algorithms/iqn.md#several-steps-to-the-bootstrap"),
    "prioritized": ("prioritized replay", "algorithms/iqn.md#prioritized-replay"),
    "weight_averaging": ("averaged weights", "decisions/0020-averaged-weights.md"),
    "target_update_freq": ("the target network", "algorithms/iqn.md#the-target-network"),
    "munchausen": ("soft targets", "algorithms/iqn.md#munchausen"),
    "exploration_repeats": ("exploration that lasts", "algorithms/iqn.md#exploration-that-lasts"),
    "normalize_rewards": ("the scale of rewards", "stability.md#the-scale-of-rewards"),
    "torso": ("torsos", "guides/torsos.md"),
    "spectral_norm": ("spectral norm", "guides/torsos.md#spectral-norm"),
    "compute_dtype": ("bfloat16", "guides/gpu.md#bfloat16"),
    "fraction_entropy": ("deviations", "algorithms/fqf.md#deviations-from-the-paper"),
    "noisy": ("noisy layers", "algorithms/iqn.md#noisy-layers"),
    "fraction_learning_rate": ("what moving fractions do", "algorithms/fqf.md#what-moving-fractions-do"),
    "weigh_targets": ("uneven targets", "algorithms/fqf.md#uneven-targets"),
    "head": ("heads", "algorithms/pqn.md#heads"),
}
"""Words and place, below docs/, of what explains a field."""


def tables(name: str) -> str:
    """Return the tables of an algorithm's page."""
    config = ALGORITHMS[name].config
    rows: dict[str, list[str]] = {title: [] for title in [*list(GROUPS.values())[:5], OWN, *list(GROUPS.values())[5:]]}
    for f in dataclasses.fields(config):
        groups = [MOVED[f.name]] if f.name in MOVED else [g for g in GROUPS if f.name in pytree.defaults(g)]
        rows[GROUPS[groups[0]] if groups else OWN].append(row(name, config, f))
    head = "| field | kind | default | published | range | meaning |\n|---|---|---|---|---|---|\n"
    return "".join(f"\n### {title}\n\n{head}{''.join(lines)}" for title, lines in rows.items() if lines) + "\n"


def row(name: str, config: type, f: dataclasses.Field[Any]) -> str:
    """Return a field's row."""
    kind = "leaf" if f.name in pytree.float_fields(config) else "static"
    published = config.PAPER.get(f.name)  # type: ignore[attr-defined]
    cells = (
        f"`{f.name}`",
        kind,
        f"`{written(f.default)}`",
        "-" if published is None else f"`{written(published)}`",
        span(f),
        f.metadata["doc"] + link(name, f.name),
    )
    return f"| {' | '.join(cells)} |\n"


def span(f: dataclasses.Field[Any]) -> str:
    """Return the values that a field may take."""
    if f.metadata["choices"]:
        return ", ".join(f"`{choice}`" for choice in f.metadata["choices"])
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return ", ".join(f"{signs[k]} {written(v)}" for k, v in f.metadata["bounds"].items()) or "-"


def link(name: str, field: str) -> str:
    """Return a link to what explains a field, from the page of an algorithm."""
    if field not in LINKS:
        return ""
    words, target = LINKS[field]
    page, _, heading = target.partition("#")
    for there in (f"algorithms/{name}.md", page) if heading else (page,):  # of the page itself, where it has it
        text = (PAGES.parent / there).read_text()
        if not heading or heading in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings(text)}:
            path = os.path.relpath(PAGES.parent / there, PAGES)
            return f"; see [{words}]({'' if path == f'{name}.md' else path}{'#' + heading if heading else ''})"
    raise SystemExit(f"{page}: has no heading #{heading}, which LINKS names")


def headings(text: str) -> list[str]:
    """Return the headings of a page."""
    return re.findall(r"^#+ (.*)$", text, re.MULTILINE)


def written(value: Any) -> str:
    """Write a value as YAML has it, digits of large numbers in groups."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:_}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        if math.isinf(value):
            return ".inf" if value > 0 else "-.inf"
        mantissa, _, exponent = f"{value:.6e}".partition("e")
        if value and not 1e-2 <= abs(value) < 1e6:
            return f"{float(mantissa):g}e{int(exponent)}"
        return repr(value)
    return f"[{', '.join(map(written, value))}]" if isinstance(value, tuple) else str(value)


def main() -> None:
    """Write, or check, every page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = []
    for name in ALGORITHMS:
        page = PAGES / f"{name}.md"
        text = page.read_text()
        before, _, rest = text.partition(BEGIN)
        after = rest.partition(END)[2]
        new = f"{before}{BEGIN}{tables(name)}{END}{after}"
        if new != text:
            stale.append(page.name)
            if not check:
                page.write_text(new)
    if check and stale:
        sys.exit(f"{', '.join(stale)}: not what the configs say; run make tables")


if __name__ == "__main__":
    main()
