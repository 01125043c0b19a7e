"""Writes tables of the documentation: `make tables`.

    docs/algorithms/*.md   hyperparameters, from the configs
    docs/benchmarks.md     validated sections, from docs/benchmarks.yaml

python tools/tables.py           writes
python tools/tables.py --check   exit status 1 where a page is not what this would write
"""

import argparse
import dataclasses
import math
import os
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantilax import ALGORITHMS, hyperparameters, pytree
from quantilax.reports import validated as records

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = DOCS / "algorithms"
BEGIN, END = "<!-- tables: written by `make tables` -->\n", "<!-- end of tables -->\n"

GROUPS: dict[type, str] = {
    hyperparameters.Loop: "The loop",
    hyperparameters.Replay: "Replay",
    hyperparameters.Optimiser: "Optimisation",
    hyperparameters.Target: "Target network",
    hyperparameters.Munchausen: "Soft targets",
    hyperparameters.Exploration: "Exploration",
    hyperparameters.Task: "The task",
    hyperparameters.RiskObjective: "Risk",
    hyperparameters.Network: "The network",
}
ACTOR, HEAD = "Actor and critics", "The head"
TITLES = [*list(GROUPS.values())[:5], ACTOR, HEAD, *list(GROUPS.values())[5:]]
MOVED: dict[str, str] = {
    **dict.fromkeys(("num_steps", "num_minibatches", "lambda_"), "The loop"),
    "adam_eps": "Optimisation",
    "exploration_repeats": "Exploration",
    **dict.fromkeys(("dueling", "noisy"), "The network"),
    **dict.fromkeys(("num_critics", "top_quantiles_to_drop"), ACTOR),
    **dict.fromkeys(("learn_temperature", "temperature", "target_entropy"), ACTOR),
    **dict.fromkeys(("policy_delay", "target_noise", "target_noise_clip", "exploration_noise"), ACTOR),
    **dict.fromkeys(("clip_ratio", "entropy_coefficient", "value_coefficient", "normalize_advantages"), ACTOR),
}
"""Tables in which a loop's own fields stand; those of heads have one by themselves."""

LINKS = {
    "metrics": ("metrics", "algorithms/q_learning.md#metrics"),
    "signals": ("signals", "diagnosis.md#signals"),
    "n_step": ("several steps", "algorithms/q_learning.md#several-steps-to-the-bootstrap"),
    "prioritized": ("prioritized replay", "algorithms/q_learning.md#prioritized-replay"),
    "weight_averaging": ("averaged weights", "decisions/0020-averaged-weights.md"),
    "target_update_freq": ("the target network", "algorithms/q_learning.md#the-target-network"),
    "double": ("double selection", "algorithms/q_learning.md#double-selection"),
    "munchausen": ("Munchausen", "algorithms/q_learning.md#munchausen"),
    "exploration_repeats": ("exploration that lasts", "algorithms/q_learning.md#exploration-that-lasts"),
    "normalize_rewards": ("the scale of rewards", "stability.md#the-scale-of-rewards"),
    "torso": ("torsos", "guides/torsos.md"),
    "spectral_norm": ("spectral norm", "guides/torsos.md#spectral-norm"),
    "compute_dtype": ("bfloat16", "guides/gpu.md#bfloat16"),
    "fraction_entropy": ("deviations", "algorithms/fqf.md#deviations-from-the-paper"),
    "dueling": ("dueling streams", "algorithms/q_learning.md#dueling-streams"),
    "noisy": ("noisy layers", "algorithms/q_learning.md#noisy-layers"),
    "fraction_learning_rate": ("what moving fractions do", "algorithms/fqf.md#what-moving-fractions-do"),
    "weigh_targets": ("uneven targets", "algorithms/fqf.md#uneven-targets"),
    "tau_sampling": ("fractions", "algorithms/iqn.md#fractions"),
    "risk": ("acting with risk", "algorithms/iqn.md#acting-with-risk"),
    **dict.fromkeys(("risk_objective", "risk_level", "risk_levels", "return_min"), ("risk", "risk.md")),
    "non_crossing": ("quantiles that never cross", "algorithms/qrdqn.md#quantiles-that-never-cross"),
    "hl_gauss_sigma": ("HL-Gauss", "algorithms/q_learning.md#hl-gauss"),
    "head": ("heads", "algorithms/q_learning.md#heads"),
    **dict.fromkeys(("num_critics", "top_quantiles_to_drop"), ("several critics", "algorithms/sac.md#several-critics")),
}
"""Words and place, below docs/, of what explains a field."""


def tables(name: str) -> str:
    """Return the tables of an algorithm's page."""
    config = ALGORITHMS[name].config
    rows: dict[str, list[str]] = {title: [] for title in TITLES}
    for f in sorted(dataclasses.fields(config), key=lambda f: f.name != "head"):  # the head before its own fields
        groups = [title for group, title in GROUPS.items() if f.name in pytree.defaults(group)]
        rows[MOVED.get(f.name) or (groups[0] if groups else HEAD)].append(row(name, config, f))
    has_paper = bool(config.PAPER)  # type: ignore[attr-defined]
    columns = ["field", "kind", "default", *(["published"] if has_paper else []), "range", "meaning"]
    top = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n"
    return "".join(f"\n### {title}\n\n{top}{''.join(lines)}" for title, lines in rows.items() if lines) + "\n"


def row(name: str, config: type, f: dataclasses.Field[Any]) -> str:
    """Return a field's row."""
    kind = "leaf" if f.name in pytree.float_fields(config) else "static"
    paper = config.PAPER  # type: ignore[attr-defined]
    published = f"`{written(paper[f.name])}`" if f.name in paper else "-"
    cells = (
        f"`{f.name}`",
        kind,
        f"`{written(f.default)}`",
        *([published] if paper else []),
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
    is_of_the_loop = page == "algorithms/q_learning.md"  # the page itself may say more of it
    for there in (f"algorithms/{name}.md", page) if is_of_the_loop else (page,):
        text = (DOCS / there).read_text()
        if not heading or heading in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings(text)}:
            path = os.path.relpath(DOCS / there, PAGES)
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


def validated() -> str:
    """Return the tables of validated sections by environment, then how each row was made."""
    file = DOCS / "benchmarks.yaml"
    rows = records.parse(file.read_text(encoding="utf-8"), file)
    groups: dict[tuple[str, str, float | None], list[records.Record]] = {}
    for r in rows:
        groups.setdefault((r.environment, r.config, r.solved), []).append(r)
    parts = []
    for (environment, config, level), group in groups.items():
        told = "" if level is None else f" A mean return of {level:g} or more counts as solved."
        parts.append(f"\n### {environment}\n\nSections of {code(config)}.{told}\n\n{results(group)}")
    made = "".join(
        f"\n{code(f'{r.config} {r.section}')}, {r.date}, {', '.join(code(shortened(c)) for c in r.commits)}:\n\n"
        f"```bash\n{folded(r.command)}\n```\n"
        for r in rows
    )
    return f"{''.join(parts)}\n## How each row was made\n\n{HOW}{made}\n"


HOW = """\
`quantilax recommend` writes each row into `docs/benchmarks.yaml`, and `make tables` writes this
page's tables from there. The results of its study are in `studies.json` and `records.parquet` of
the directory in `investigations/`, with the machine. `quantilax study DIR --unpack` makes a
directory of each study again. A `+` behind a commit means that the tree had uncommitted changes,
such as the records of runs that were being written.
"""


def results(rows: list[records.Record]) -> str:
    """Return a table of results, with columns on solving if the rows have a threshold."""
    columns: dict[str, Callable[[records.Record], str]] = {
        "section": lambda r: code(r.section),
        "steps": lambda r: f"{r.steps:,}",
        "seeds": lambda r: f"{r.n}: {r.seeds}",
        "return at the end": lambda r: r.return_at_end,
        "lowest run": lambda r: r.lowest_at_end,
    }
    if rows[0].solved is not None:
        columns |= {
            "ended solved": lambda r: r.ended_solved or "-",
            "fell after solving": lambda r: r.fell or "-",
            "solved for good at": lambda r: r.solved_for_good or "-",
        }
    return table([[*columns], *([cell(r) for cell in columns.values()] for r in rows)])


def table(rows: list[list[str]]) -> str:
    """Return a table whose first row is its heading."""
    top, *rest = ([cell.replace("|", r"\|") for cell in cells] for cells in rows)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (top, ["---"] * len(top), *rest))


def shortened(commit: str) -> str:
    """Return the first ten digits of a commit, and its `+` if the tree had changes."""
    return commit[:10] + commit[40:]


def folded(command: str) -> str:
    """Return a command over several lines, each option with its value."""
    glued = re.sub(r"(--\S+) (?!--)", "\\1\0", command)
    lines = textwrap.wrap(glued, 94, break_long_words=False, break_on_hyphens=False)
    return " \\\n    ".join(lines).replace("\0", " ")


def code(text: str) -> str:
    """Write text as code."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    gap = " " if "`" in text else ""
    return f"{fence}{gap}{text}{gap}{fence}"


def main() -> None:
    """Write, or check, every page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = []
    pages = {PAGES / f"{name}.md": tables(name) for name in ALGORITHMS} | {DOCS / "benchmarks.md": validated()}
    for page, table in pages.items():
        text = page.read_text()
        before, _, rest = text.partition(BEGIN)
        after = rest.partition(END)[2]
        new = f"{before}{BEGIN}{table}{END}{after}"
        if new != text:
            stale.append(page.name)
            if not check:
                page.write_text(new)
    if check and stale:
        sys.exit(f"{', '.join(stale)}: not what the configs or benchmarks.yaml say; run make tables")


if __name__ == "__main__":
    main()
