"""A study's results, read once: the numbers behind tables, verdicts, figures and choices."""

import itertools
import math
from typing import Any, NamedTuple, Self

import polars as pl

from quantilax import algorithms, pytree, statistics
from quantilax.errors import ConfigError
from quantilax.runs import configs
from quantilax.studies import tables
from quantilax.studies.store import Failure, Store

LEVEL = 1 - statistics.CONFIDENCE
"""Significance level: a difference is claimed if its adjusted p-value is below this.

The adjustment is for the number of variants compared.
"""


class Results(NamedTuple):
    """A study's numbers; the frames are empty if no run is finished."""

    store: Store
    summary: pl.DataFrame
    """One row per variant that has runs."""
    outcomes: pl.DataFrame
    """One row per run."""
    curves: pl.DataFrame
    """One row per variant and step."""
    failures: list[Failure]
    missing: dict[str, list[int]]
    """Seeds without results, by variant.

    Leaves out variants without missing seeds, and those that failed before any run was finished.
    """

    @classmethod
    def read(cls, store: Store) -> Self:
        """Read the files of a study.

        Raises:
            ConfigError: a file of the records is damaged.
        """
        records, failures = store.records(), store.failures()
        is_empty = records.is_empty()
        there = set(records.select("variant", "seed").unique().iter_rows())
        failed = {failure.variant for failure in failures} - {variant for variant, _ in there}
        missing = {
            variant: [seed for seed in store.facts["seeds"] if (variant, seed) not in there]
            for variant in store.facts["variants"]
            if variant not in failed
        }
        return cls(
            store,
            pl.DataFrame() if is_empty else store.summary(),
            pl.DataFrame() if is_empty else store.outcomes(),
            pl.DataFrame() if is_empty else tables.learning_curves(records),
            failures,
            {variant: seeds for variant, seeds in missing.items() if seeds},
        )

    @property
    def base(self) -> str:
        """The variant that the others are compared with."""
        return str(self.store.facts["base"])

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the summary."""
        return list(self.summary.iter_rows(named=True))

    @property
    def others(self) -> list[dict[str, Any]]:
        """The rows of the summary that are compared with the base."""
        return [row for row in self.rows if row["variant"] != self.base and row["auc_p"] is not None]

    @property
    def changes(self) -> list[dict[str, Any]]:
        """Changes to the study after runs were there.

        Each has `field` (`prediction` or `solved`), `before`, `after`, and `runs`, the number of
        runs at the time of the change.
        """
        found = self.store.facts.get("changes", [])
        assert isinstance(found, list)
        return found

    def row(self, variant: str) -> dict[str, Any] | None:
        """Return the row of a variant in the summary; None if it has no runs."""
        return next((row for row in self.rows if row["variant"] == variant), None)

    @property
    def broken(self) -> dict[str, list[int]]:
        """Seeds whose runs broke, by variant; variants without any are left out."""
        found: dict[str, list[int]] = {}
        if self.outcomes.height:
            for variant, seed in self.outcomes.filter("broken").select("variant", "seed").iter_rows():
                found.setdefault(variant, []).append(seed)
        return found

    def derived(self) -> dict[str, dict[str, float]]:
        """Return the quantities derived from each variant's config.

        Variants whose config this version of quantilax does not accept are left out.
        """
        found: dict[str, dict[str, float]] = {}
        for variant, fields in self.store.facts["variants"].items():
            try:
                config = algorithms.get(fields["algorithm"]).config
                own = {name: value for name, value in fields.items() if name not in configs.NAMING}
                found[variant] = pytree.from_dict(config, own, variant).derived()
            except ConfigError:
                continue
        return found


def verdict_of(row: dict[str, Any], name: str) -> int:
    """Return what the adjusted test of `final` or `auc` says of a variant against the base.

    1 means better, -1 worse, and 0 that they cannot be told apart.
    """
    if row[f"{name}_p_holm"] is None or row[f"{name}_p_holm"] >= LEVEL:
        return 0
    return (row[f"{name}_improvement"] > 0.5) - (row[f"{name}_improvement"] < 0.5)


def smallest_adjusted_p(results: Results) -> float | None:
    """Return the smallest adjusted p-value that a study's numbers of runs allow.

    None if nothing is compared.
    """
    base = results.row(results.base)
    if base is None or not results.others:
        return None
    return min(smallest_p(row["n"], base["n"]) for row in results.others) * len(results.others)


def seeds_needed(comparisons: int) -> int:
    """Return the least number of seeds per variant with which the rank test can show anything.

    Args:
        comparisons: the number of comparisons that the test is adjusted for.
    """
    return next(n for n in itertools.count(1) if smallest_p(n, n) * comparisons < LEVEL)


def smallest_p(n: int, m: int) -> float:
    """Return the smallest p-value of the rank test with n and m runs.

    It is reached if all runs of one side are above all runs of the other.
    """
    return min(1.0, 2 / math.comb(n + m, n))
