"""The definition of a study: a base, variants of it, seeds, and when the task counts as solved.

question: Does a larger batch end the collapses?
prediction: The share of runs that drop below 475 after reaching it halves at batch_size 256.
base: {config: configs/gymnax/cartpole.yaml, section: iqn, overrides: {total_timesteps: 50_000}}
variants:
  one_at_a_time: {batch_size: [64, 256]}
seeds: 20
solved: 475
"""

import contextlib
import itertools
import json
import math
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from quantilax import pytree
from quantilax.agent import Agent
from quantilax.errors import ConfigError, did_you_mean
from quantilax.host import paths
from quantilax.runs import configs
from quantilax.runs.configs import Section

MAX_VARIANTS = 1_000
"""Most variants of a study. Nobody can read more in a table; split a finer search into studies."""

MAX_RUNS = 1_000_000
"""Most runs (variants times seeds) of a study; no machine gets through more."""

BASE = "base"
"""Name of the variant without overrides."""


class Variant(NamedTuple):
    """One configuration of a study."""

    name: str
    overrides: dict[str, Any]
    """Fields that differ from the base section, as written in the file."""
    section: Section


class Study(NamedTuple):
    """A study with every variant resolved.

    `Study.load` reads one from a file, `Study.make` builds one in Python.
    """

    name: str
    question: str
    prediction: str
    variants: tuple[Variant, ...]
    """The base comes first."""
    seeds: tuple[int, ...]
    solved: float | None
    """Mean return of an evaluation at which the task counts as solved; None: not defined."""
    definition: dict[str, Any]
    """The file's contents, with `base.config` as written there."""
    where: str
    """Where the study is defined, for messages."""

    @classmethod
    def load(cls, path: str | Path) -> "Study":
        """Read a study's file.

        Raises:
            ConfigError: says what is wrong with the file or a variant, and how to fix it.
        """
        return load(Path(path))

    @classmethod
    def make(cls, definition: Mapping[str, Any], name: str = "study") -> "Study":
        """Build a study from the contents of a file: `base`, `variants`, `seeds` and so on.

        Raises:
            ConfigError: as for `load`.
        """
        return make(definition, name)

    @property
    def directory(self) -> Path:
        """The default directory for its results."""
        return Path("studies") / paths.as_name(self.name)

    @property
    def base(self) -> Variant:
        """The variant that the others are compared with."""
        return self.variants[0]

    def create(self, variant: Variant) -> Agent:
        """Build the agent of a variant."""
        return variant.section.create()

    def with_seeds(self, number: int) -> "Study":
        """Return the study with another number of seeds, counted from its first seed."""
        return self._replace(seeds=_seeds({"seeds": number, "first_seed": self.seeds[0]}, self.where))


SOLVED = {"CartPole-v1": 475.0, "Acrobot-v1": -100.0, "MountainCar-v0": -110.0, "LunarLander-v2": 200.0}
"""Returns at which environments count as solved (`reward_threshold` in Gymnasium's registry)."""

KEYS = ("question", "prediction", "base", "variants", "seeds", "first_seed", "solved")


def load(path: Path) -> Study:
    """Read a study's file.

    Raises:
        ConfigError: says what is wrong with the file or a variant, and how to fix it.
    """
    return make(
        configs.read_yaml(path, "study; expected lines such as 'base: {config: ..., section: iqn}'"),
        path.resolve().parent.name if path.stem == "study" else path.stem,
        str(path),
        path.parent,
    )


def make(definition: Mapping[str, Any], name: str, where: str = "study", beside: Path | None = None) -> Study:
    """Build a study from the contents of a file.

    Args:
        definition: a mapping with some of `KEYS`.
        name: the study's name in reports and in the results' directory.
        where: where it is defined, for messages.
        beside: the directory to search first for `base.config`, before the current one.

    Raises:
        ConfigError: as for `load`.
    """
    for key in definition:
        if key not in KEYS:
            hint = "; it is called 'variants' now" if key == "cells" else did_you_mean(key, KEYS, "keys")
            raise ConfigError(f"{where}: unknown key '{key}'{hint}")
    base = _base(definition.get("base"), where, beside or Path())
    variants: dict[str, Variant] = {}
    names: dict[str, set[str]] = {}
    for way, variant_name, overrides in _variants(definition.get("variants"), where):
        origin = f"{where}: variant '{variant_name}'"
        if variant_name in variants or variant_name == BASE:
            raise ConfigError(
                f"{where}: two variants are called '{variant_name}'; rename one ('{BASE}' is the base itself)"
            )
        section = configs.with_overrides(base, overrides, origin)
        variants[variant_name] = Variant(variant_name, overrides, section)
        names.setdefault(way, set()).add(variant_name)
    named, drawn = names.get("named", set()), names.get("random", set())
    everything = _without_twins([Variant(BASE, {}, base), *variants.values()], named, drawn, where)
    seeds = _seeds(definition, where)
    if len(everything) * len(seeds) > MAX_RUNS:
        raise ConfigError(
            f"{where}: {len(everything) * len(seeds):,} runs are more than {MAX_RUNS:,}; ask for fewer seeds"
        )
    return Study(
        name=name,
        question=_text(definition, "question", where),
        prediction=_text(definition, "prediction", where),
        variants=tuple(everything),
        seeds=seeds,
        solved=_solved(definition, base, where),
        definition=dict(definition),
        where=where,
    )


def _base(asked: Any, where: str, beside: Path) -> Section:
    if not isinstance(asked, Mapping) or not isinstance(asked.get("config"), str):
        raise ConfigError(
            f"{where}: base: expected lines such as 'config: configs/gymnax/cartpole.yaml', got {asked!r}"
        )
    for key in asked:
        if key not in ("config", "section", "overrides"):
            raise ConfigError(
                f"{where}: base: unknown key '{key}'{did_you_mean(key, ('config', 'section', 'overrides'), 'keys')}"
            )
    overrides = asked.get("overrides") or {}
    if not isinstance(overrides, Mapping):
        raise ConfigError(f"{where}: base: overrides: expected fields such as 'gamma: 0.99', got {overrides!r}")
    if not isinstance(asked.get("section"), str | None):
        raise ConfigError(f"{where}: base: section: expected a name, got {asked['section']!r}")
    written = Path(asked["config"])
    is_beside = os.path.exists(beside / written) or not os.path.exists(configs.find(written))
    file = beside / written if is_beside else written
    section = configs.load_section(file, asked.get("section"))
    return configs.with_overrides(section, overrides, f"{where}: base: overrides")


Named = tuple[str, dict[str, Any]]


def _variants(asked: Any, where: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Return way, name and overrides of every variant, from the four ways (`WAYS`) to list them."""
    if asked is None:
        return []
    if not isinstance(asked, Mapping):
        raise ConfigError(f"{where}: variants: expected {', '.join(WAYS)}, got {asked!r}")
    found: list[tuple[str, str, dict[str, Any]]] = []
    for way, what in asked.items():
        if way not in WAYS:
            raise ConfigError(f"{where}: variants: unknown key '{way}'{did_you_mean(way, WAYS, 'keys')}")
        found += [(way, *variant) for variant in WAYS[way](what, f"{where}: variants: {way}")]
        if len(found) > MAX_VARIANTS:
            raise ConfigError(f"{where}: variants: more than {MAX_VARIANTS:,}; split the study")
    return found


def _named(asked: Any, where: str) -> list[Named]:
    _expect_mapping(asked, where, "names with fields, such as 'wide: {torso_sizes: [128, 128]}'")
    for name, overrides in asked.items():
        _expect_mapping(overrides, f"{where}: {name}", "fields such as 'batch_size: 128'")
    return [(str(name), dict(overrides)) for name, overrides in asked.items()]


def _grid(asked: Any, where: str) -> list[Named]:
    """Return the product of the fields' values."""
    values = _lists(asked, where)
    number = math.prod(len(v) for v in values.values())
    if number > MAX_VARIANTS:
        raise ConfigError(
            f"{where}: {number:,} variants are more than {MAX_VARIANTS:,}; leave values out, or draw some with 'random'"
        )
    points = [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]
    return [(label(point), point) for point in points]


def _one_at_a_time(asked: Any, where: str) -> list[Named]:
    """Return each value of each field alone, with the other fields as in the base."""
    return [(label({k: v}), {k: v}) for k, values in _lists(asked, where).items() for v in values]


def _random(asked: Any, where: str) -> list[Named]:
    """Return variants drawn at random; the same seed draws the same variants."""
    _expect_mapping(asked, where, "'number', 'seed' and 'fields'")
    for key in asked:
        if key not in ("number", "seed", "fields"):
            raise ConfigError(f"{where}: unknown key '{key}'{did_you_mean(key, ('number', 'seed', 'fields'), 'keys')}")
    number, seed = asked.get("number"), asked.get("seed", 0)
    if type(number) is not int or not 1 <= number <= MAX_VARIANTS:
        raise ConfigError(f"{where}: number: expected a whole number from 1 to {MAX_VARIANTS}, got {number!r}")
    if type(seed) is not int or seed < 0:
        raise ConfigError(f"{where}: seed: expected a whole number, 0 or more, got {seed!r}")
    _expect_mapping(asked.get("fields"), f"{where}: fields", "ranges such as 'gamma: {uniform: [0.9, 0.999]}'")
    generator = np.random.default_rng(seed)
    draws = {k: _draws(r, number, generator, f"{where}: fields: {k}") for k, r in asked["fields"].items()}
    width = len(str(number - 1))
    return [(f"random-{i:0{width}}", {k: values[i] for k, values in draws.items()}) for i in range(number)]


def _draws(asked: Any, number: int, generator: np.random.Generator, where: str) -> list[Any]:
    example = "one of 'uniform: [low, high]', 'log_uniform: [low, high]', 'integer: [low, high]', 'choice: [...]'"
    _expect_mapping(asked, where, example)
    if len(asked) != 1 or next(iter(asked)) not in ("uniform", "log_uniform", "integer", "choice"):
        raise ConfigError(f"{where}: expected {example}, got {asked!r}")
    (way, ends), *_ = asked.items()
    if way == "choice":
        if not isinstance(ends, list) or not ends:
            raise ConfigError(f"{where}: choice: expected a list of values, got {ends!r}")
        return [ends[i] for i in generator.integers(len(ends), size=number)]
    try:
        low, high = (float(pytree.number(end) if isinstance(end, str) else end) for end in ends)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{where}: {way}: expected [low, high], got {reprlib.repr(ends)}") from None
    if not low < high or not math.isfinite(high - low) or (way == "log_uniform" and low <= 0):
        raise ConfigError(f"{where}: {way}: expected {'0 < ' if way == 'log_uniform' else ''}low < high, got {ends!r}")
    if way == "integer":
        if max(-low, high) >= 2**31:
            raise ConfigError(f"{where}: integer: expected whole numbers below 2^31, got {ends!r}")
        return [int(i) for i in generator.integers(int(low), int(high), size=number, endpoint=True)]
    if way == "log_uniform":
        return [float(f"{x:.4g}") for x in np.exp(generator.uniform(math.log(low), math.log(high), number))]
    return [float(f"{x:.4g}") for x in generator.uniform(low, high, number)]


WAYS: dict[str, Callable[[Any, str], list[Named]]] = {
    "named": _named,
    "grid": _grid,
    "one_at_a_time": _one_at_a_time,
    "random": _random,
}


def label(overrides: Mapping[str, Any]) -> str:
    """Name a variant after its fields: `batch_size=64, gamma=0.98`."""
    return ", ".join(f"{field}={_shown(value)}" for field, value in overrides.items())


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return "[" + " ".join(map(_shown, value)) + "]"
    return str(value)


def _lists(asked: Any, where: str) -> dict[str, list[Any]]:
    _expect_mapping(asked, where, "fields with lists, such as 'batch_size: [32, 128]'")
    for field, values in asked.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{where}: {field}: expected a list of values, got {values!r}")
    return dict(asked)


def _expect_mapping(asked: Any, where: str, example: str) -> None:
    if not isinstance(asked, Mapping) or not asked:
        raise ConfigError(f"{where}: expected {example}, got {asked!r}")


def _without_twins(variants: list[Variant], named: set[str], by_chance: set[str], where: str) -> list[Variant]:
    """Drop duplicates that arise by themselves, and refuse others, which are mistakes.

    A list of values may contain the base's, and a random draw may repeat a variant.
    """
    kept: dict[str, Variant] = {}
    for variant in variants:
        twin = kept.setdefault(repr(resolved(variant.section)), variant)
        if twin is variant or variant.name in by_chance or (twin.name == BASE and variant.name not in named):
            continue
        raise ConfigError(
            f"{where}: variants '{twin.name}' and '{variant.name}' are the same configuration; leave one out"
        )
    return list(kept.values())


def resolved(section: Section) -> dict[str, Any]:
    """Return algorithm, environment and all hyperparameters of a section, defaults included."""
    config: Any = pytree.from_dict(section.algorithm.config, section.hyperparameters, section.where)
    return {"algorithm": section.algorithm.name, **section.environment, **pytree.to_dict(config)}


def plain(section: Section) -> dict[str, Any]:
    """Return `resolved` as JSON stores it, with lists for tuples."""
    found: dict[str, Any] = json.loads(json.dumps(resolved(section)))
    return found


def _seeds(definition: Mapping[str, Any], where: str) -> tuple[int, ...]:
    asked, first = definition.get("seeds", 20), definition.get("first_seed", 0)
    if type(first) is not int or first < 0:
        raise ConfigError(f"{where}: first_seed: expected a whole number, 0 or more, got {first!r}")
    if type(asked) is int and asked > MAX_RUNS:
        raise ConfigError(f"{where}: seeds: {asked:,} runs of each variant are more than {MAX_RUNS:,}; ask for fewer")
    if type(asked) is int and asked > 0:
        seeds: Iterable[Any] = range(first, first + asked)
    elif isinstance(asked, list) and asked and "first_seed" not in definition:
        seeds = asked
    else:
        raise ConfigError(
            f"{where}: seeds: expected a number of seeds (from 'first_seed' on, default 0) or a list of seeds, got {asked!r}"
        )
    seeds = tuple(seeds)
    if not all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds):
        raise ConfigError(f"{where}: seeds: expected whole numbers from 0 to 2^32 - 1, got {asked!r}")
    twice = {seed for seed in seeds if seeds.count(seed) > 1} if isinstance(asked, list) else set()
    if twice:
        raise ConfigError(f"{where}: seeds: {min(twice)} is listed twice; leave one out")
    return seeds


def _solved(definition: Mapping[str, Any], base: Section, where: str) -> float | None:
    asked = definition.get("solved", SOLVED.get(base.env))
    if isinstance(asked, str):  # `1e2` is read as text; see `quantilax.host.strict_yaml`
        with contextlib.suppress(ValueError):
            asked = pytree.number(asked)
    if asked is not None and (type(asked) not in (int, float) or not math.isfinite(asked)):
        raise ConfigError(f"{where}: solved: expected a mean return, got {asked!r}")
    return None if asked is None else float(asked)


def _text(definition: Mapping[str, Any], key: str, where: str) -> str:
    text = definition.get(key, "")
    if not isinstance(text, str):
        raise ConfigError(f"{where}: {key}: expected text, got {text!r}; put it in quotes")
    return text.strip()
