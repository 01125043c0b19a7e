"""Bands: where the learning curves of held-out seeds lie, and whether a run lies among them.

`of_study` makes the band of a finished study; `quantilax.checks.watch` compares a run with it.
If the study measured signals, the band has the ranges of their figures, by which `diagnose` judges
runs of the section. Bands lie beside the config file of their sections: `cartpole.bands.json`
beside `cartpole.yaml`.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

from quantilax.checks.figures import has_signals
from quantilax.checks.rules import Healthy, Range, own_ranges
from quantilax.errors import ConfigError, reason
from quantilax.host.files import write_whole

if TYPE_CHECKING:
    from quantilax.studies.store import Store

FORMAT = 1
SHARES = (0.1, 0.2, 0.5)
"""Shares of the budget at which a run is compared."""
ENDS = (0.01, 0.99)
"""Quantiles over seeds of the mean return that bound the band; below a hundred seeds they are close
to the lowest and the highest seed."""
SLACK = 0.05
"""Share of the band's whole range of returns by which a run may be below it: the noise of an
evaluation, where all held-out seeds are at the top."""
LEAST_SEEDS = 10
IDENTITY = ("algorithm", "env", "env_args", "wrappers")
"""Entries of a section that must be equal for curves to be comparable."""
WITHOUT = ("signals", "metrics", "eval_freq", "eval_episodes")
"""Fields that do not change training."""
NEAR = 4
"""Fields in which a section may differ for the ranges of the band's figures to judge it. The budget
must be the same, because schedules follow it."""


class Figures(NamedTuple):
    """The ranges of figures over a section's healthy seeds."""

    first_seed: int
    seeds: int
    commit: str
    ranges: dict[str, dict[str, list[float]]]
    """For each of `SHARES` and "1.0": (low, high) of the figures' medians up to there."""

    def at(self, share: float) -> dict[str, Range]:
        """Return the ranges at a share of the budget: those of the last share before it."""
        passed = [key for key in self.ranges if float(key) <= share + 1e-9]
        return {name: Range(*ends) for name, ends in self.ranges[passed[-1]].items()} if passed else {}


class Band(NamedTuple):
    """The learning curves of a section's held-out seeds."""

    section: dict[str, Any]
    """Algorithm, environment and every hyperparameter."""
    first_seed: int
    seeds: int
    commit: str
    env_step: list[int]
    """Of each evaluation."""
    low: list[float]
    """The lower of the quantiles `ENDS` of the mean return over seeds, at each evaluation."""
    middle: list[float]
    """The median."""
    high: list[float]
    """The upper of the quantiles."""
    figures: Figures | None = None
    """None if no signals were measured."""

    def at(self, env_step: int) -> tuple[float, float, float]:
        """Return low, middle and high at a step, between evaluations by straight lines."""
        low, middle, high = (float(np.interp(env_step, self.env_step, x)) for x in (self.low, self.middle, self.high))
        return low, middle, high

    def healthy(self, section: Mapping[str, Any], env_step: int, of: str) -> Healthy | None:
        """Return what is known of healthy runs for a run of a section that has come to `env_step`.

        None without figures, too early in a run, or if the section is not near enough.
        """
        changes = self.changes(section)
        if not self.figures or changes is None or len(changes) > NEAR or "total_timesteps" in changes:
            return None
        ranges = self.figures.at(env_step / self.section["total_timesteps"])
        return Healthy(of, ranges, {name: theirs for name, (_, theirs) in changes.items()}) if ranges else None

    def changes(self, section: Mapping[str, Any]) -> dict[str, tuple[Any, Any]] | None:
        """Return the fields in which a section differs: (its value, the band's).

        None if algorithm or environment differ, so that curves cannot be compared. Fields that came
        after the band was made are left out.
        """
        if any(section.get(name) != self.section.get(name) for name in IDENTITY):
            return None
        names = [name for name in self.section if name in section and name not in (*IDENTITY, *WITHOUT)]
        return {n: (section[n], self.section[n]) for n in names if section[n] != self.section[n]}


def path_of(config: Path) -> Path:
    """Return the file with the bands of a config file's sections."""
    return config.with_name(f"{config.stem}.bands.json")


def of_study(path: Path, variant: str | None = None) -> Band:
    """Return the band of a variant of a study.

    Args:
        path: the study's directory, or its place in an archive.
        variant: its name; None: the only one.

    Raises:
        ConfigError: no such study or variant, or too few finished runs.
    """
    from quantilax.studies.store import Store

    store = Store.open(path)
    names = list(store.facts["variants"])
    if variant is None and len(names) > 1:
        raise ConfigError(f"{path}: has several variants; choose one with --variant: {', '.join(names)}")
    if variant is not None and variant not in names:
        raise ConfigError(f"{path}: no variant '{variant}'; it has {', '.join(names)}")
    return of_store(store, variant or names[0])


def of_store(store: "Store", variant: str) -> Band:
    """Return the band of a variant's finished runs.

    Raises:
        ConfigError: there are fewer than `LEAST_SEEDS`.
    """
    from quantilax.studies.store import with_defaults

    rows = store.records()
    rows = rows.filter(variant=variant).sort("seed", "env_step") if rows.height else rows
    seeds = rows["seed"].unique().sort().to_list() if rows.height else []
    if len(seeds) < LEAST_SEEDS:
        raise ConfigError(
            f"{store.path}: has {len(seeds)} finished runs of variant '{variant}', and a band needs {LEAST_SEEDS}; run more"
            " seeds"
        )
    steps = rows["env_step"].unique().sort().to_list()
    returns = np.nan_to_num(rows["return_mean"].to_numpy().reshape(len(seeds), len(steps)), nan=-np.inf)
    low, middle, high = np.quantile(returns, [ENDS[0], 0.5, ENDS[1]], axis=0, method="inverted_cdf")
    starts = store.facts["starts"]
    section = with_defaults(store.facts["variants"][variant])
    runs = int(seeds[0]), len(seeds), str(starts[-1].get("commit") or "unknown") if starts else "unknown"
    below, between, above = ([float(f"{x:.6g}") for x in values] for values in (low, middle, high))
    figures = Figures(*runs, ranges_of(rows, section)) if has_signals(rows) else None
    return Band(section, *runs, [int(step) for step in steps], below, between, above, figures)


def ranges_of(rows: pl.DataFrame, section: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Return the ranges of figures at `SHARES` of the budget and at its end, over healthy seeds."""
    found = {}
    for share in (*SHARES, 1.0):
        until = rows.filter(pl.col("env_step") <= share * section["total_timesteps"])
        if until["env_step"].n_unique() > 1:
            ranges = own_ranges(until, section)
            found[str(share)] = {name: [float(f"{end:.4g}") for end in ends] for name, ends in ranges.items()}
    return found


def read(config: Path, section: str) -> Band | None:
    """Return the band beside a config file for one of its sections, or None if there is none.

    Raises:
        ConfigError: the file cannot be read, or another version of quantilax wrote it.
    """
    return _read(path_of(config)).get(section)


def write(config: Path, section: str, band: Band) -> Path:
    """Write a band beside a config file, in the place of an older one, and return the path.

    Of an older one of the same section, the curves stay if they are of more seeds, and the figures
    stay if the new one has none.

    Raises:
        ConfigError: as for `read`, or the file cannot be written.
    """
    path = path_of(config)
    before = _read(path)
    if (old := before.get(section)) and old.changes(band.section) == {}:
        curves = old if old.seeds > band.seeds else band
        band = curves._replace(figures=band.figures or old.figures)
    lines = ",\n".join(f"  {json.dumps(name)}: {_line(one)}" for name, one in sorted({**before, section: band}.items()))
    try:
        write_whole(path, f'{{"format": {FORMAT}, "bands": {{\n{lines}\n}}}}\n')
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {reason(error)}") from None
    return path


def _line(band: Band) -> str:
    return json.dumps(band._asdict() | ({"figures": band.figures._asdict()} if band.figures else {}))


def healthy(section: Mapping[str, Any], env_step: int, config: Path | None = None) -> Healthy | None:
    """Return what is known of healthy runs of the section that is most like this one.

    Args:
        section: of a run: algorithm, environment and every hyperparameter.
        env_step: of its last evaluation.
        config: the config file beside which to look; None: all that come with quantilax.

    Returns:
        From the band with figures that differs in the fewest fields; None if none is near enough.
    """
    from quantilax.runs.configs import shipped

    files = shipped().values() if config is None else [config]
    near = []
    for file in files:
        for name, band in _read(path_of(file)).items():
            seeds = band.figures.seeds if band.figures else 0
            near.append(band.healthy(section, env_step, f"the {seeds} held-out seeds of {name} in {file.name}"))
    return min(filter(None, near), key=lambda one: len(one.changed), default=None)


def _read(path: Path) -> dict[str, Band]:
    """Return all bands of a file; none if it does not exist."""
    remedy = "make it again with quantilax band, or train with --no-band"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if (kind := found["format"]) == FORMAT:
            return {name: _band(**one) for name, one in found["bands"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: cannot be read ({reason(error)}); {remedy}") from None
    raise ConfigError(f"{path}: has format {kind}, not {FORMAT}; {remedy}")


def _band(figures: dict[str, Any] | None = None, **fields: Any) -> Band:
    return Band(**fields, figures=Figures(**figures) if figures else None)


def lines(band: Band) -> Iterator[str]:
    """Yield a line for each of `SHARES`, for the end, and for the figures."""
    for share in (*SHARES, 1.0):
        step = round(share * band.env_step[-1])
        low, middle, high = band.at(step)
        yield f"{share:>4.0%} (step {step:,}): return {low:.4g} to {high:.4g}, median {middle:.4g}"
    figures = len(band.figures.ranges["1.0"]) if band.figures else 0
    yield f"ranges of {figures} figures of signals" if figures else "no ranges of signals: they need signals: true"
